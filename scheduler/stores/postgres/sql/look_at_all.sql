-- Have the ladders of all who wait for some gates looked at.
update waitline.job set look = least(look, $2) where gate = any($1::text[]) and state = 0 and ladder is not null

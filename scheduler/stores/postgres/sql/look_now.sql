-- Have the ladders of those who wait for some gates looked at.
update waitline.job set look = $2 where gate = any($1::text[]) and state = 0 and look is not null

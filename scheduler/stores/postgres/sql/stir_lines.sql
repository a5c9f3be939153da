-- Have the lines at some gates looked at anew.
update waitline.line
set due = least(due, $2), start = null, front = null
where gate = any($1::text[]) and waiting > 0

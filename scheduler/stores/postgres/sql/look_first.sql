-- Have ladders looked at of jobs that would otherwise be refused, before any other and whatever their time.
update waitline.job set look = 0 where id = any($1::bigint[])

-- Until when those who wait have to start, exactly, of tenants whose lines were walked.
update waitline.tenant set tightest = waitline.tightest(name) where name = any($1::text[])

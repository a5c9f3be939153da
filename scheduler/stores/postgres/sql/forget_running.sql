-- Running jobs of a forgotten tenant: what they were asked goes at once, the row says `forget` until they end.
update waitline.job
set stop = true, forget = true, key = null, digest = null, prompt = '""'
where id = any($1::bigint[]) and state = 1
returning id

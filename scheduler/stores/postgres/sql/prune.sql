-- Forget results that were kept long enough, a few at a time.
delete from waitline.job
where id = any(array(select id from waitline.job where finished <= $1 order by finished limit $2))

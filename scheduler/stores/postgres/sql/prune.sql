-- Forget results that were kept long enough, a few at a time. Asked twice: only what stands in the outer condition is
-- looked at again in a row that changed meanwhile, as that of a job that is to be tried once more.
delete from waitline.job
where
    id = any(array(select id from waitline.job where finished <= $1 order by finished limit $2))
    and finished <= $1

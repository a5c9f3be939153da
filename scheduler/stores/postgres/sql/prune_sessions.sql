-- Forget conversations that nobody has used for long enough and no job waits for, a few at a time. Asked twice, as in
-- `prune.sql`: somebody may go on with one of them meanwhile.
delete from waitline.session
where
    id = any(array(
        select s.id
        from waitline.session as s
        where s.used <= $1 and s.holder is null
            and not exists (
                select from waitline.job as j
                where j.tenant = s.tenant and j.session in (s.name, s.id) and j.state < 2
            )
        order by s.used
        limit $2
    ))
    and used <= $1
    and holder is null

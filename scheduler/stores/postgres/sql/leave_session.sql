-- End a turn that is held, and tell those who wait for it.
with freed as (
    update waitline.session
    set holder = null, lease = null
    where id = $1 and holder = $2
    returning id
)
select pg_notify('waitline_session', id) from freed

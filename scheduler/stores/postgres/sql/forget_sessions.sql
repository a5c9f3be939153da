-- Forget a tenant's conversations, a few at a time, and tell those who wait for them.
with ended as (
    delete from waitline.session
    where id = any(array(select id from waitline.session where tenant = $1 order by name limit $2))
    returning id
)
select pg_notify('waitline_session', id) from ended

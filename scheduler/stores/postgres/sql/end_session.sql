-- Forget a session, and tell those who wait for it.
with ended as (
    delete from waitline.session where id = $1 returning id
)
select pg_notify('waitline_session', id) from ended

-- Keep a turn as number $3, if it is still held, and once. How the session stands after it.
with found as materialized (
    select id, holder, turns from waitline.session where id = $1 for update
), counted as (
    update waitline.session as s
    set turns = $3, used = waitline.now_ns()
    from found
    where s.id = found.id and found.holder = $2 and found.turns = $3 - 1
    returning s.id
), kept as (
    insert into waitline.turn (session, number, messages)
    select id, $3, $4 from counted
)
select holder = $2 is true as held, turns from found

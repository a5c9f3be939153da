-- Save gates, and lines at them.
with saved as (
    update waitline.gate as g
    set running = u.running, due = u.due, calls = u.calls, state = u.state
    from unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::text[]) as u (name, running, due, calls, state)
    where g.name = u.name
)
insert into waitline.line (gate, tenant, waiting, due, start, front, calls, finish, period, entered, step, late)
select *
from unnest(
    $6::text[], $7::text[], $8::integer[], $9::bigint[], $10::numeric[], $11::numeric[], $12::boolean[], $13::numeric[],
    $14::bigint[], $15::numeric[], $16::bigint[], $17::bigint[]
)
on conflict (tenant, gate) do update
set
    waiting = excluded.waiting, due = excluded.due, start = excluded.start, front = excluded.front, calls = excluded.calls,
    finish = excluded.finish, period = excluded.period, entered = excluded.entered, step = excluded.step,
    late = excluded.late

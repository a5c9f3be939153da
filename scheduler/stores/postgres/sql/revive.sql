-- Let a job that failed or was cancelled wait again, by its key, with all its attempts.
with saved as (
    update waitline.tenant
    set work = $2::text::numeric(60)[], waiting = $3, as_of = $4, due = $5
    where name = $1
), told as (
    select pg_notify('waitline_due', $6::text) where $6::text is not null
), revived as (
    update waitline.job
    set
        state = 0, attempt = 0, kind = null, result = null, finished = null, paid = false, deadline = null, max_wait = null,
        deferred = false, memory = null, cost[3] = coalesce(reserved, cost[3]), reserved = null, look = case when ladder is not null then $4::bigint end,
        place = case when $8 then null else arrival - head_start end
    where id = $7
)
select count(*) from told

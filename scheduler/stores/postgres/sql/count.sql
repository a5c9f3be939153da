-- A snapshot of everything.
select
    (select coalesce(sum(waiting), 0) from waitline.tenant) as waiting,
    (select coalesce(sum(running), 0) from waitline.tenant) as running,
    (select count(*) from waitline.tenant) as tenants,
    (select count(*) from waitline.job where state = 2) as done,
    (select count(*) from waitline.job where state = 3) as failed,
    (select count(*) from waitline.job where state = 4) as cancelled

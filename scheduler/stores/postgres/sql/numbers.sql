-- The time, and numbers for jobs, now that the locks are held; and what is declared for lines that are late.
select
    waitline.now_ns() as now,
    array(select nextval('waitline.job_number') from generate_series(1, $1::integer)) as numbers,
    (select target from waitline.overload) as target,
    (select newest from waitline.overload) as newest

-- The time, and numbers for jobs, now that the locks are held.
select
    waitline.now_ns() as now,
    array(select nextval('waitline.job_number') from generate_series(1, $1::integer)) as numbers

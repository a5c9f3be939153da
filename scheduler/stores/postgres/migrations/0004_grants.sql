-- Callers that run their own work (`admit`, a hook): they stand in the lines of jobs while their process says so.

alter table waitline.job
    add column home text,
    drop constraint job_check2,
    drop constraint job_check6,
    add constraint job_leased check ((lease is not null) = (state = 1 or (state = 0 and home is not null))),
    add constraint job_prompted check (prompt is not null or state > 1 or home is not null);
comment on column waitline.job.home is 'Of a caller that runs its own work: its process. It renews the lease, also while it waits.';
create index job_home on waitline.job (tenant) where home is not null and state = 0;
create index job_home_lease on waitline.job (lease) where home is not null and state = 0;

-- Callers that run their own work (`admit`, a hook): they stand in the lines of jobs while their process says so.

alter table waitline.job
    add column home text,
    add column holder bigint,
    add column call smallint check (call > 0),
    drop constraint job_check2,
    drop constraint job_check6,
    add constraint job_leased check ((lease is not null) = (state = 1 or (state = 0 and home is not null))),
    add constraint job_prompted check (prompt is not null or state > 1 or home is not null),
    add constraint job_called check ((holder is null) = (call is null) and (holder is null or home is not null));
comment on column waitline.job.home is 'Of a caller that runs its own work: its process. It renews the lease, also while it waits.';
comment on column waitline.job.holder is 'Of a continuation: the run whose slot it uses, and whose place it has. It goes behind that, before the next one.';
comment on column waitline.job.call is 'Of a continuation: which message of its run it is for, beside the first one.';
create index job_home on waitline.job (tenant) where home is not null and state = 0;
create index job_call on waitline.job (tenant) where holder is not null and state = 0;
create index job_home_lease on waitline.job (lease) where home is not null and state = 0;

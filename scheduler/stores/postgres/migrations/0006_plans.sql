-- Indexes for which a plan that was made while a table was small is no ruin on a full one.

-- What is looked up by its number, or by its tenant, must not be found by walking over all leases instead: these
-- indexes serve only who asks for a lease.
drop index waitline.job_lease;
create index job_lease on waitline.job (lease) where state = 1 and lease is not null;
drop index waitline.job_home_lease;
create index job_home_lease on waitline.job (lease) where home is not null and state = 0 and lease is not null;

-- The running callers of a tenant, among all that runs.
create index job_home_running on waitline.job (tenant) where home is not null and state = 1;

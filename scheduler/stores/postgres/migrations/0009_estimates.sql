-- What jobs probably use: what was counted of them, and what earlier ones used in the mean.

alter table waitline.job add column counted bigint check (counted >= 0);
comment on column waitline.job.counted is 'Its input tokens, if its cost is an estimate that began with them: from its usage the next ones are learned.';

create table waitline.learned (
    tenant text not null check (length(tenant) <= 512),
    gate text not null check (length(gate) <= 512),
    surplus double precision,
    output double precision,
    primary key (tenant, gate),
    check ((surplus is null) = (output is null))
) with (fillfactor = 60);
comment on table waitline.learned is 'Exponential means over calls of tenants at gates, whose name is empty where there is none. Changed under the lock of the tenant; that of a gate under the lock of that, and where there is none by whoever locks the row, last of all.';
comment on column waitline.learned.tenant is 'Empty for all tenants together: there begins one of which nothing is known.';
comment on column waitline.learned.surplus is 'What input tokens there are beyond those that were counted.';
comment on column waitline.learned.output is 'Output tokens.';

-- The one row that no other lock guards is there from the start, so that it can be locked.
insert into waitline.learned (tenant, gate) values ('', '');

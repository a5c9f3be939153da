-- Tenants that are forgotten, and configuration that is applied to them.

alter table waitline.job
    add column forget boolean not null default false,
    add constraint job_forgotten check (
        not forget or (key is null and result is null and (state = 1 or (state = 4 and prompt is null and session is null)))
    );
comment on column waitline.job.forget is 'Its tenant was forgotten: it ends as cancelled, and nothing of it stays.';

create function waitline.forget_job() returns trigger
    language plpgsql as $$
begin
    -- The conversation too: the run may have begun it anew after it was forgotten. No later job of that name has
    -- run yet, since they stand behind this one.
    delete from waitline.session where tenant = old.tenant and old.session in (name, id);
    new.state := 4;
    new.kind := 'cancelled';
    new.prompt := null;
    new.result := null;
    new.session := null;
    return new;
end
$$;
create trigger job_forget before update of state on waitline.job
    for each row when (old.forget and old.state = 1 and new.state > 1)
    execute function waitline.forget_job();
comment on function waitline.forget_job() is 'However a try of a forgotten job ends, and whatever its worker has to say.';

alter table waitline.tenant add column forgotten bigint;
comment on column waitline.tenant.forgotten is 'It was forgotten: when to see whether its buckets are full, so that the row can go as well.';
create index tenant_forgotten on waitline.tenant (forgotten) where forgotten is not null;

create table waitline.configuration (
    the_one boolean primary key default true check (the_one),
    version bigint not null check (version >= 0),
    quota text,
    digest text not null
);
insert into waitline.configuration (version, digest) values (0, '');
comment on table waitline.configuration is 'The configuration that counts, in one row. Version 0 says nothing.';
comment on column waitline.configuration.quota is 'Of tenants that it does not name; null leaves them to quotas=.';
comment on column waitline.configuration.digest is 'Tells another content under the same version.';

create table waitline.configured (
    tenant text primary key check (length(tenant) between 1 and 512),
    quota text not null
);
comment on table waitline.configured is 'The tenants that the configuration names.';

-- Ladders: how jobs may be served when they would wait too long, and how they are.

alter table waitline.job
    add column ladder text,
    add column rung smallint not null default 0 check (rung >= 0),
    add column predicted bigint not null default 0,
    add column model text,
    add column max_tokens integer check (max_tokens > 0),
    add column look bigint,
    add column deferred boolean not null default false,
    add constraint job_ladder check (ladder is not null or (rung = 0 and look is null and not deferred)),
    add constraint job_deferred check (not deferred or state > 0);
comment on column waitline.job.ladder is 'The rungs of its policy, and what is needed to decide about them, as JSON.';
comment on column waitline.job.rung is 'How many rungs up to the last that was taken.';
comment on column waitline.job.predicted is 'The wait that was predicted when it was taken.';
comment on column waitline.job.look is 'When to look at its ladder again, while it waits.';
comment on column waitline.job.deferred is 'It is served outside of all lines, by a worker that takes such jobs; nobody has it yet while its worker is empty.';
create index job_look on waitline.job (look) where state = 0 and look is not null;
create index job_deferred on waitline.job (worker, id) where deferred and state = 1;

alter table waitline.line add column step bigint not null default 0;
comment on column waitline.line.step is 'The `after` of the rung that the tenant took last at the gate; 0 once its waits are shorter again.';

-- A claim refuses nobody at a closed gate who may go another way.
do $$
declare
    text text := pg_get_functiondef('waitline.gate_lines'::regproc);
begin
    if length(text) - length(replace(text, 'f.paid, f.home', '')) <> 3 * length('f.paid, f.home') then
        raise exception 'waitline.gate_lines is not the function that it was';
    end if;
    execute replace(text, 'f.paid, f.home', 'f.ladder is not null as climbs, f.paid, f.home');
end
$$;

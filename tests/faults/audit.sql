-- What happens to jobs, noted in the transaction in which it happens: the witness of the checks.
create table public.event (
    number bigserial primary key,
    transaction bigint not null default txid_current(),
    began bigint not null default (extract(epoch from transaction_timestamp()) * 1000000000)::bigint,
    at bigint not null default (extract(epoch from clock_timestamp()) * 1000000000)::bigint,
    what text not null,
    job bigint not null,
    tenant text not null,
    tries integer not null,
    slot bigint,
    home text,
    worker text,
    gate text,
    session text
);

create function public.witness() returns trigger language plpgsql as $$
declare
    what text;
    job waitline.job = new;
begin
    if tg_op = 'INSERT' then
        what = 'accepted';
    elsif tg_op = 'DELETE' then
        job = old;
        what = case old.state when 0 then 'withdrawn' when 1 then 'left' end;
    elsif old.state = 0 and new.state = 1 then
        what = case when new.deferred then 'deferred' else 'granted' end;
    elsif old.state = 1 and new.state = 0 then
        what = 'again';
    elsif old.state < 2 and new.state > 1 then
        what = 'ended';
    elsif old.state > 1 and not (new.forget and new.state = old.state) then
        what = 'changed after its end';
    elsif new.deferred and new.worker <> '' and old.tries <> new.tries then
        what = 'taken';
    elsif new.deferred and new.worker = '' and old.worker <> '' then
        what = 'freed';
    elsif old.tries <> new.tries then
        what = 'granted twice';
    end if;
    if what is not null then
        insert into public.event (what, job, tenant, tries, slot, home, worker, gate, session)
        values (
            what, job.id, job.tenant, job.tries, job.slot, job.home, coalesce(job.worker, old.worker), job.gate,
            job.session
        );
    end if;
    return null;
end
$$;

create trigger witness after insert or update or delete on waitline.job
for each row execute function public.witness();

-- What happens to jobs, noted in the transaction in which it happens: the witness of the checks.
create table public.event (
    number bigserial primary key,
    transaction bigint not null default txid_current(),
    what text not null,
    job bigint not null,
    tenant text not null,
    tries integer not null,
    slot bigint,
    worker text
);

create function public.witness() returns trigger language plpgsql as $$
declare
    what text;
begin
    if tg_op = 'INSERT' then
        what = 'accepted';
    elsif old.state = 0 and new.state = 1 then
        what = 'granted';
    elsif old.state = 1 and new.state = 0 then
        what = 'again';
    elsif old.state < 2 and new.state > 1 then
        what = 'ended';
    elsif old.state > 1 then
        what = 'changed after its end';
    elsif old.tries <> new.tries then
        what = 'granted twice';
    end if;
    if what is not null then
        insert into public.event (what, job, tenant, tries, slot, worker)
        values (what, new.id, new.tenant, new.tries, new.slot, new.worker);
    end if;
    return null;
end
$$;

create trigger witness after insert or update on waitline.job for each row execute function public.witness();

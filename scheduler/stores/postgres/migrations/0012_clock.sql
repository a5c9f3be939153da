-- The time of the lines never goes back, whatever the server's clock does: it is ahead of it by as much as that went back.

create table waitline.clock (
    one boolean primary key default true check (one),
    ahead bigint not null default 0 check (ahead >= 0)
);
comment on table waitline.clock is 'One row: the nanoseconds by which the server''s clock went back since the lines began.';
insert into waitline.clock default values;

create function waitline.wall_ns() returns bigint
    language sql volatile parallel restricted
    as $$ select (extract(epoch from clock_timestamp()) * 1000000000)::bigint $$;
comment on function waitline.wall_ns() is 'The clock of this server. Tests set it back.';

create or replace function waitline.now_ns() returns bigint
    language sql volatile parallel restricted
    as $$ select waitline.wall_ns() + ahead from waitline.clock $$;

create function waitline.catch_up(moment bigint) returns bigint
    language plpgsql as $$
declare
    behind bigint;
begin
    -- Two who notice the same step wait for one another: the second one finds nothing left to do.
    perform from waitline.clock for update;
    behind := moment - waitline.now_ns();
    if behind > 0 then
        update waitline.clock set ahead = ahead + behind;
    end if;
    return greatest(behind, 0);
end
$$;
comment on function waitline.catch_up(bigint) is 'Let it be at least that moment, which it was before the clock went back.';

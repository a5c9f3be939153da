-- Conversations: whose they are, who continues one now, and what was said.

create table waitline.session (
    id text primary key check (length(id) between 16 and 64),
    tenant text not null check (length(tenant) between 1 and 512),
    name text not null check (length(name) between 1 and 512),
    person text,
    metadata text not null,
    turns integer not null default 0 check (turns >= 0),
    holder text,
    lease bigint,
    used bigint not null,
    unique (tenant, name),
    check ((holder is null) = (lease is null))
) with (fillfactor = 70);
comment on column waitline.session.name is 'What the jobs of its tenant call it; its id if nobody gave it a name.';
comment on column waitline.session.person is 'The opaque id of a user, sent upstream.';
comment on column waitline.session.metadata is 'Whatever the application wants its hooks to see, as JSON.';
comment on column waitline.session.turns is 'How many were kept. It numbers the next one.';
comment on column waitline.session.holder is 'The turn under way. It fences what is said: only the turn that is held may add to it.';
comment on column waitline.session.lease is 'When another turn may take over, should the holder not have renewed it.';
create index session_used on waitline.session (used);

create table waitline.turn (
    session text not null references waitline.session on delete cascade,
    number integer not null check (number > 0),
    messages text not null,
    primary key (session, number)
);
comment on table waitline.turn is 'What was said in one turn: a row, so that all of it is kept or nothing.';
comment on column waitline.turn.messages is 'Messages-API messages, as a JSON array.';

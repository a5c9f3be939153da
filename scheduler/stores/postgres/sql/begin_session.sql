-- Begin a session, unless there is one of that name already.
insert into waitline.session (id, tenant, name, person, metadata, used)
values ($1, $2, $3, $4, $5, waitline.now_ns())
on conflict do nothing

-- A session by its id.
select id, tenant, name, person, metadata from waitline.session where id = $1

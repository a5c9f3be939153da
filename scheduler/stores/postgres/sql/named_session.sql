-- A session by its name.
select id, tenant, name, person, metadata from waitline.session where tenant = $1 and name = $2

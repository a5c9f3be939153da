-- A tenant's jobs among the next $4 ones of all tenants, and where the page ends; null at the end of the table.
with page as materialized (
    select id, tenant from waitline.job where id > $2 and id <= $3 order by id limit $4
)
select max(id) as last, array_agg(id order by id) filter (where tenant = $1) as jobs from page

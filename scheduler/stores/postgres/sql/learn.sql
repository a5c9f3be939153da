-- What is known of tenants at gates by now.
insert into waitline.learned (tenant, gate, surplus, output)
select * from unnest($1::text[], $2::text[], $3::float8[], $4::float8[])
on conflict (tenant, gate) do update set surplus = excluded.surplus, output = excluded.output

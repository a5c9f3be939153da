-- The lines of tenants at gates, as JSON.
select tenant, json_agg(l)::text as lines from waitline.line as l where tenant = any($1::text[]) group by tenant

-- Lock gates, then tenants, in the one order in which everybody does.
select * from waitline.lock_tenants($1)

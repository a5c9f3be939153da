-- Until when those who wait have to start, of some tenants: of those where anybody has to.
select name, tightest from waitline.tenant where name = any($1::text[]) and waiting > 0 and tightest is not null

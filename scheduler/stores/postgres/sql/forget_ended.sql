-- Jobs of a forgotten tenant that are over. Those cancelled just now keep a row without content for their callers.
with blanked as (
    update waitline.job
    set forget = true, prompt = null, result = null, session = null, key = null, digest = null
    where id = any($2::bigint[])
)
delete from waitline.job where id = any($1::bigint[]) and state > 1 and id <> all($2::bigint[])

-- A gate that nobody needs any more, with the places that tenants had there and what was learned.
with lines as (
    delete from waitline.line where gate = $1
), lessons as (
    delete from waitline.learned where gate = $1
)
delete from waitline.gate where name = $1

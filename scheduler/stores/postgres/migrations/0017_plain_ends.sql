-- Whether there are gates is known in the database first: a process that has not heard of them may end jobs that passed
-- one, or that were deferred.

do $$
declare
    text text := pg_get_functiondef('waitline.settle_plain'::regproc);
    before text := text;
begin
    text := replace(text, 'if exists (select from waitline.tenant', 'if exists (select from waitline.gate) or exists (select from waitline.tenant');
    if length(text) <> length(before) + length('exists (select from waitline.gate) or ') then
        raise exception 'waitline.settle_plain is not the function that it was';
    end if;
    execute text;
end
$$;

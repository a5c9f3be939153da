-- Two lookups that were walks by some plans: the next backoff of a line (a minimum may be planned as a walk over all of
-- them, the first in order may not), and what is due of tenants that are named (what says plainly that something is due
-- may be planned as a walk over all tenants of which it is).

do $$
declare
    text text;
    other text;
    name text;
begin
    foreach name in array array['due_lines', 'gate_lines'] loop
        text := pg_get_functiondef(('waitline.' || name)::regproc);
        other := regexp_replace(
            text, 'select min\(j\.returns\)(\s+from waitline\.job as j\s+where [^()]* and j\.returns > clock)',
            'select j.returns\1 order by j.returns limit 1'
        );
        if length(other) <> length(text) + length(' order by j.returns limit 1') - length('min()') then
            raise exception 'waitline.% is not the function that it was', name;
        end if;
        execute other;
    end loop;
    text := pg_get_functiondef('waitline.due_lines'::regproc);
    other := replace(
        text, 't.name = any(names) and t.due <= about',
        't.name = any(names) and case when t.due is null then false else t.due <= about end'
    );
    if length(other) <> length(text) + length('case when t.due is null then false else end ') then
        raise exception 'waitline.due_lines is not the function that it was';
    end if;
    execute other;
end
$$;

-- A gate that was never seen.
insert into waitline.gate (name, given, state) values ($1, $2, $3) on conflict (name) do nothing

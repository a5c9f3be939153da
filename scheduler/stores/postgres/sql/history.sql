-- What was said in a session, turn by turn.
select messages from waitline.turn where session = $1 order by number

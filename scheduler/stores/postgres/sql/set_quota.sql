-- A quota that was set by hand is above any other.
update waitline.tenant set quota = $2, origin = 2 where name = $1

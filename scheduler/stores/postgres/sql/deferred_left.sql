-- Whether there are deferred jobs that nobody has.
select true from waitline.job where deferred and state = 1 and worker = '' and not stop limit 1

-- What a deferred job remembers for its later tries, whichever worker has them.

alter table waitline.job add column memory text check (length(memory) <= 500);
comment on column waitline.job.memory is 'A short text of ids that a try of a deferred job left for the next one, say which message batch it is in. No contents.';

-- What a call reserved, once more was charged for it: a later try of its job reserves that again, and not more.

alter table waitline.job add column reserved bigint;
comment on column waitline.job.reserved is 'Output tokens of its cost at the grant, once it was charged for more than those while the output came; null otherwise.';

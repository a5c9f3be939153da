-- Let nobody change the configuration before this transaction has ended.
select from waitline.configuration for share

"""The lines in PostgreSQL beside other durable queues, and beside what bare SQL allows: targets P7 to P12."""

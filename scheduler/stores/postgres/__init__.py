"""Lines, buckets and results in PostgreSQL."""

from scheduler.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]

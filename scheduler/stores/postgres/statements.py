"""The SQL, from its files."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

HERE = files("scheduler.stores.postgres")


@cache
def statement(name: str) -> str:
    """Read ``sql/<name>.sql``."""
    return HERE.joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


@cache
def migrations() -> tuple[tuple[int, str, str], ...]:
    """All migrations in order: number, name, text. They are numbered from 1 without a gap."""
    found = sorted(
        entry.name for entry in HERE.joinpath("migrations").iterdir() if entry.name.endswith(".sql")
    )
    return tuple(
        (int(name.split("_", 1)[0]), name, HERE.joinpath("migrations", name).read_text(encoding="utf-8"))
        for name in found
    )

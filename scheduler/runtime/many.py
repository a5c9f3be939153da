"""Many jobs in one call: what is asked for each of them, checked before any is accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

MOST = 1000
"""Jobs in one call: over a store that is one transaction, which holds the locks of all their tenants."""

WISHES = ("tenant", "prompt", "session", "timeout", "policy", "priority", "cost", "gate", "key")
"""What may be said of a job."""


def each(jobs: Iterable[Mapping[str, Any]], make: Callable[..., T]) -> list[T]:
    """What `make` makes of the arguments of every job, in order. What it raises names the job's index."""
    if isinstance(jobs, (str, Mapping)) or not isinstance(jobs, Iterable):
        raise TypeError(f"jobs: must be an iterable of mappings, got {type(jobs).__name__}")
    made: list[T] = []
    for index, job in enumerate(jobs):
        if index == MOST:
            raise ValueError(f"jobs: must be at most {MOST} in one call, got more; make it several calls")
        try:
            made.append(make(**_checked(job)))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"jobs[{index}]: {error}") from error
    return made


def _checked(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a job, if they have the names that there are."""
    if not isinstance(job, Mapping):
        raise TypeError(f"must be a mapping of arguments, got {type(job).__name__}")
    for name in job:
        if name not in WISHES:
            raise TypeError(f"{name!r} is no argument of a job; these are: {', '.join(WISHES)}")
    for name in WISHES[:2]:
        if name not in job:
            raise TypeError(f"{name}: is missing")
    return job

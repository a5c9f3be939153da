"""Reasons: why a job waited in vain, as its row says it and its caller is told."""

from __future__ import annotations

import json

from asyncpg import Record

from scheduler.core.entry import EXPIRED
from scheduler.core.policy import Reason
from scheduler.core.stored import StoredJob

REFUSED = frozenset(map(str, (Reason.MAX_WAIT, Reason.PAUSE, Reason.SPEND_LIMIT)))
"""Kinds of failures of a job that may not wait for another try; it is told when that could have been."""


def too_late(row: Record, now: int, after: int) -> str | None:
    """Why a job may not wait for another try, as the kind of its failure; None if it may."""
    if row["deadline"] is not None and now + after >= row["deadline"]:
        return "timeout"
    if row["max_wait"] is not None and after > row["max_wait"]:
        return str(Reason.MAX_WAIT)
    return None


def kind_of(job: StoredJob) -> str:
    """Why a job waited in vain: the kind of its failure."""
    if job.state is EXPIRED:
        return "timeout"
    return "refused" if job.refusal is None else str(job.refusal.reason)


def why(job: StoredJob) -> str | None:
    """What its caller is told beside the kind, as JSON: the limit, or nanoseconds until it would start."""
    if job.refusal is None:
        return None
    return json.dumps(job.refusal.limit or job.refusal.retry_after)

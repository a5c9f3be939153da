"""The exceptions of waitline: one base class, few types, each says when.

No exception carries a prompt, a reply or a key: ids, sizes and times only.
"""

from __future__ import annotations

import copyreg
from typing import Any

from scheduler.core.policy import Refusal
from scheduler.core.quota import NS, nanoseconds


class SchedulerError(Exception):
    """Base of everything that the scheduler, the agent and the HTTP edge raise on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The attributes are the state: `args` miss what was given by keyword, and an OSError keeps none.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


def seconds_text(seconds: float) -> str:
    """Write a duration with as many decimals as it has, at most nine: ``0.5s``, ``0.333333334s``."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


class ErrRateLimited(SchedulerError):
    """The call was refused now and would have been expected to start `retry_after` seconds later.

    Attributes: `tenant`; `reason`, a member of `scheduler.core.policy.Reason` (a string: ``"strict"``,
    ``"queue_full"``, ``"max_wait"``, ``"deadline"``, …); `retry_after`, seconds, always above 0 and
    different for callers refused one after another.
    """

    __slots__ = ("reason", "retry_after", "tenant")  # a refusal must stay cheap

    def __init__(self, tenant: str, reason: str, retry_after: float) -> None:
        self.tenant = tenant
        self.reason = reason
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        make, args, state = super().__reduce__()
        return make, args, {name: getattr(self, name) for name in ErrRateLimited.__slots__} | state

    def __str__(self) -> str:
        # Made only when somebody reads it.
        text = f"tenant {self.tenant!r} is rate limited: retry after {seconds_text(self.retry_after)}"
        return text if self.reason == "strict" else f"{text} ({self.reason})"


class QuotaExceeded(SchedulerError, ValueError):
    """The cost can never fit the quota: waiting would not help."""

    def __init__(self, tenant: str, limit: str, cost: int, burst: int) -> None:
        self.tenant = tenant
        self.limit = limit
        self.cost = cost
        self.burst = burst

    def __str__(self) -> str:
        return f"tenant {self.tenant!r}: cost {self.cost} can never fit {self.limit} of burst {self.burst}"


def refused(tenant: str, refusal: Refusal) -> ErrRateLimited | QuotaExceeded:
    """What the caller of a refused job sees."""
    if refusal.limit is not None:
        return QuotaExceeded(tenant, *refusal.limit)
    return ErrRateLimited(tenant, refusal.reason, refusal.retry_after / NS)


class DeadlineExceeded(SchedulerError, TimeoutError):
    """The call's `timeout`, or the scheduler's `run_timeout`, passed before there was a result.

    `which` is ``"timeout"`` or ``"run_timeout"``; `seconds` is the bound that passed.
    """

    def __init__(self, tenant: str, which: str, seconds: float) -> None:
        self.tenant = tenant
        self.which = which
        self.seconds = seconds

    def __str__(self) -> str:
        return f"tenant {self.tenant!r}: {self.which} of {seconds_text(self.seconds)} passed"


class JobFailed(SchedulerError):
    """The job used up its attempts. `kind` names the last failure, `attempts` counts the tries.

    In process the handler's last exception is `__cause__`; no message text is stored.
    """

    def __init__(self, tenant: str, kind: str, attempts: int) -> None:
        self.tenant = tenant
        self.kind = kind
        self.attempts = attempts

    def __str__(self) -> str:
        plural = "" if self.attempts == 1 else "s"
        return f"tenant {self.tenant!r}: failed after {self.attempts} attempt{plural}: {self.kind}"


class UpstreamError(SchedulerError):
    """The model did not give a usable answer.

    `kind` is a member of `scheduler.upstreams.claude.Kind` as a string (``"rate_limited"``,
    ``"overloaded"``, ``"broken_stream"``, …); `status` the HTTP status or None; `error_type` and
    `error_code` as the upstream sent them (of what could not be sent, `error_type` is the class of the
    client's exception); `retry_after` seconds, if the upstream named them;
    `request_id` to quote to support. The upstream's message text is not kept.
    """

    def __init__(
        self,
        kind: str,
        status: int | None = None,
        error_type: str | None = None,
        error_code: str | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(kind, status, error_type, error_code, retry_after, request_id)
        self.kind = kind
        self.status = status
        self.error_type = error_type
        self.error_code = error_code
        self.retry_after = retry_after
        self.request_id = request_id

    def __str__(self) -> str:
        parts = [
            f"status {self.status}" if self.status is not None else "",
            self.error_type or "",
            self.error_code or "",
            f"request {self.request_id}" if self.request_id else "",
        ]
        detail = ", ".join(part for part in parts if part)
        return f"upstream: {self.kind} ({detail})" if detail else f"upstream: {self.kind}"


class SchedulerClosed(SchedulerError):
    """The scheduler is closed, or was closed while the call waited or ran."""


class Retry(SchedulerError):
    """A handler raises this to be run again; it never reaches a caller.

    `after`: seconds until the job may return to its line. `pause_gate`: nobody passes the job's gate
    until then. `refused`: the upstream refused without doing any work (429, 529), so the tenant is not
    charged again and the try does not count as an attempt; otherwise the attempt counts and is paid.
    The exception that is its `__cause__` becomes the cause of `JobFailed` after the last attempt.
    """

    after_ns: int
    """`after` in nanoseconds, worked out once."""

    def __init__(self, after: float = 0.0, *, pause_gate: bool = False, refused: bool = False) -> None:
        if not after >= 0.0 or after == float("inf"):
            raise ValueError(f"after: must be finite seconds of at least 0, got {after!r}")
        super().__init__(after)
        self.after = after
        self.after_ns = nanoseconds("after", after)
        self.pause_gate = pause_gate
        self.refused = refused

"""waitline: each tenant gets a token bucket and a line; `submit` waits its turn instead of being refused."""

from scheduler.core.policy import Overload, Policy, Rung
from scheduler.core.quota import Cost, Quota, Rate, Usage
from scheduler.core.signals import Answer, News, Signal, Upstream
from scheduler.errors import (
    DeadlineExceeded,
    ErrRateLimited,
    JobFailed,
    QuotaExceeded,
    Retry,
    SchedulerClosed,
    SchedulerError,
    UpstreamError,
)
from scheduler.runtime.estimates import Estimates
from scheduler.runtime.grant import Grant
from scheduler.runtime.job import Handler, Job, Ticket
from scheduler.runtime.outage import Outage
from scheduler.runtime.scheduler import Scheduler
from scheduler.runtime.values import GateStatistics, Quote, Receipt, Statistics, StoreStatistics

__all__ = [
    "Answer",
    "Cost",
    "DeadlineExceeded",
    "ErrRateLimited",
    "Estimates",
    "GateStatistics",
    "Grant",
    "Handler",
    "Job",
    "JobFailed",
    "News",
    "Outage",
    "Overload",
    "Policy",
    "Quota",
    "QuotaExceeded",
    "Quote",
    "Rate",
    "Receipt",
    "Retry",
    "Rung",
    "Scheduler",
    "SchedulerClosed",
    "SchedulerError",
    "Signal",
    "Statistics",
    "StoreStatistics",
    "Ticket",
    "Upstream",
    "UpstreamError",
    "Usage",
]

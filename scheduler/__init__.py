"""waitline: each tenant gets a token bucket and a line; `submit` waits its turn instead of being refused."""

from scheduler.core.policy import Policy
from scheduler.core.quota import Cost, Quota, Rate, Usage
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
from scheduler.runtime.grant import Grant
from scheduler.runtime.job import Handler, Job, Ticket
from scheduler.runtime.scheduler import Scheduler
from scheduler.runtime.values import Quote, Statistics

__all__ = [
    "Cost",
    "DeadlineExceeded",
    "ErrRateLimited",
    "Grant",
    "Handler",
    "Job",
    "JobFailed",
    "Policy",
    "Quota",
    "QuotaExceeded",
    "Quote",
    "Rate",
    "Retry",
    "Scheduler",
    "SchedulerClosed",
    "SchedulerError",
    "Statistics",
    "Ticket",
    "UpstreamError",
    "Usage",
]

"""The rows that are compared, in the order of the tables."""

from benchmarks.degradation.rows.base import Refusal, Row, Setting, TooLate
from benchmarks.degradation.rows.ours import Waitline, WaitlineWithDeadlines, WaitlineWithReserve
from benchmarks.degradation.rows.queues import Fifo, FifoOfTokens
from benchmarks.degradation.rows.unscheduled import RejectAtOnce, SdkRetries, SemaphorePerTenant

ROWS: dict[str, type[Row]] = {
    row.name: row
    for row in (
        RejectAtOnce,
        SdkRetries,
        SemaphorePerTenant,
        Fifo,
        FifoOfTokens,
        Waitline,
        WaitlineWithReserve,
        WaitlineWithDeadlines,
    )
}

__all__ = ["ROWS", "Refusal", "Row", "Setting", "TooLate"]

"""The rows that are compared, in the order of the tables."""

from importlib.util import find_spec

from benchmarks.degradation.rows.base import Refusal, Row, Setting, TooLate
from benchmarks.degradation.rows.ours import (
    Waitline,
    WaitlineWithDeadlines,
    WaitlineWithLadder,
    WaitlineWithReserve,
)
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
        WaitlineWithLadder,
    )
}


def on_the_real_clock() -> dict[str, type[Row]]:
    """Every row, and LiteLLM's router where that is installed."""
    if find_spec("litellm") is None:
        return ROWS
    from benchmarks.degradation.rows.router import LiteLLMRouter  # noqa: PLC0415 - takes seconds to import

    return {LiteLLMRouter.name: LiteLLMRouter, **ROWS}


__all__ = ["ROWS", "Refusal", "Row", "Setting", "TooLate", "on_the_real_clock"]

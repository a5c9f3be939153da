"""The figures of a row, from its journal and from what its quiet tenants get alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from statistics import median

from benchmarks.degradation.account import Offer
from benchmarks.degradation.fairness import Shares
from benchmarks.degradation.journal import Fate, Journal, Outcome
from benchmarks.degradation.play import DEADLINE_S
from benchmarks.degradation.trace import Trace
from benchmarks.degradation.usage import waiting_use, whole_use
from benchmarks.measure import NS, Row, percentile

WARM_UP = 10
"""The first tenth of a trace is warm-up: from then on a 429 counts as one in steady state.

Jain's index is of a time at least as long.
"""


def percent(part: float, whole: float) -> float | None:
    """A part of a whole; None of nothing."""
    return 100 * part / whole if whole else None


def seconds(values: Iterable[int | None], part: float) -> float | None:
    """A percentile of nanoseconds, in seconds."""
    value = percentile([value for value in values if value is not None], part)
    return None if value is None else value / NS


def totals(fates: Iterable[Fate]) -> list[int]:
    """From submit to reply, of those who got one."""
    return [fate.total for fate in fates if fate.outcome is Outcome.ANSWERED and fate.total is not None]


def of_tenants(journal: Journal, tenants: Collection[str]) -> list[Fate]:
    """The fates of some tenants' prompts."""
    return [fate for fate in journal.fates.values() if fate.prompt.tenant in tenants]


def answered_of(fates: Sequence[Fate]) -> Row:
    """How many got an answer, and how many in time."""
    got = totals(fates)
    in_time = sum(total <= DEADLINE_S * NS for total in got)
    return {"answered": percent(len(got), len(fates)), "in_time": percent(in_time, len(fates))}


def calls_of(journal: Journal, warm: int) -> Row:
    """Refused calls, those after the warm-up, and calls that brought no answer."""
    fates = list(journal.fates.values())
    calls = sum(fate.calls for fate in fates)
    answered = len(journal.having(Outcome.ANSWERED))
    limited = [refusal.at for refusal in journal.refusals if refusal.status == 429]
    return {
        "calls": calls,
        "limited": len(limited),
        "limited_steady": sum(at >= warm for at in limited),
        "overloaded": sum(refusal.status == 529 for refusal in journal.refusals),
        "wasted": calls - answered,
        "wasted_percent": percent(calls - answered, calls),
    }


def against_alone(journal: Journal, alone: Sequence[Journal], trace: Trace) -> Row:
    """The quiet tenants' p99 from submit to reply, over the one that they have without anybody else.

    Of all of them together, of the tenant in the middle, and of the one that is worst off; only tenants with
    answers in both count. Without `alone` there is nothing to hold against.
    """
    pairs = []
    together: list[int] = []
    by_itself: list[int] = []
    for tenant, own in zip(trace.quiet, alone, strict=False):
        here, there = totals(of_tenants(journal, {tenant})), totals(own.fates.values())
        if here and there:
            together += here
            by_itself += there
            pairs.append((percentile(here, 0.99) or 0) / (percentile(there, 0.99) or 1))
    reply, own_reply = percentile(together, 0.99), percentile(by_itself, 0.99)
    return {
        "quiet_reply_p99": None if reply is None else reply / NS,
        "quiet_alone_p99": None if own_reply is None else own_reply / NS,
        "quiet_ratio": None if reply is None or own_reply is None else reply / own_reply,
        "quiet_ratio_median": median(pairs) if pairs else None,
        "quiet_ratio_worst": max(pairs, default=None),
    }


def fairness_of(journal: Journal, offer: Offer, least: int) -> Row:
    """Jain's index by real and by expected cost, and the time and the number of tenants it is of."""
    shares = Shares.of(journal, least)
    if shares is None:
        return dict.fromkeys(("jain", "jain_expected", "jain_tenants", "jain_seconds"))
    return {
        "jain": shares.jain(journal, offer),
        "jain_expected": shares.jain(journal, offer, expected=True),
        "jain_tenants": len(shares.tenants),
        "jain_seconds": (shares.end - shares.start) / NS,
    }


def foresight(journal: Journal) -> Row:
    """How many times as long as they were told to expect callers waited, of those told at least a second."""
    ratios = [
        fate.wait / NS / fate.promised
        for fate in journal.having(Outcome.ANSWERED)
        if fate.wait is not None and fate.promised is not None and fate.promised >= 1
    ]
    return {
        "told_p10": percentile(ratios, 0.1),
        "told_p50": percentile(ratios, 0.5),
        "told_p90": percentile(ratios, 0.9),
    }


def figures(journal: Journal, alone: Sequence[Journal], trace: Trace, offer: Offer) -> Row:
    """Everything that is reported of one row at one load."""
    quiet, noisy = of_tenants(journal, trace.quiet), of_tenants(journal, trace.noisy)
    warm = trace.length // WARM_UP
    row: Row = {"prompts": len(journal.fates), **answered_of(list(journal.fates.values()))}
    for name, fates in (("quiet", quiet), ("noisy", noisy)):
        row |= {f"{name}_{key}": value for key, value in answered_of(fates).items()}
        waits = [fate.wait for fate in fates if fate.outcome is Outcome.ANSWERED]
        row |= {f"{name}_wait_p50": seconds(waits, 0.5), f"{name}_wait_p99": seconds(waits, 0.99)}
    row |= calls_of(journal, warm)
    row["use"] = whole_use(journal, offer, trace.length)
    row["use_waiting"] = waiting_use(journal, offer, warm)
    row |= fairness_of(journal, offer, warm)
    row |= foresight(journal)
    row |= against_alone(journal, alone, trace)
    row["end_s"] = max(fate.ended or 0 for fate in journal.fates.values()) / NS
    return row

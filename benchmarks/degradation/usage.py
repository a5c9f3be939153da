"""How much of the account's scarcest limit a row used: in all, and while somebody waited.

A call counts with what it really used, at the moment in which it was let in: that is what a scheduler
decides. Its output is produced, and charged upstream, over the seconds that follow.
"""

from __future__ import annotations

from benchmarks.degradation.account import Offer
from benchmarks.degradation.journal import Journal
from benchmarks.measure import NS


def admissions(journal: Journal, dimension: int) -> list[tuple[int, int]]:
    """(moment, permits) of every call that was let in."""
    return sorted((at, prompt.amounts[dimension]) for at, prompt in journal.admissions)


def whole_use(journal: Journal, offer: Offer, length: int) -> float | None:
    """Percent of what the limit refills during the trace that was let in by its end."""
    used = sum(permits for at, permits in admissions(journal, offer.binding) if at <= length)
    return 100 * used / (offer.per_minute[offer.binding] * length / NS / 60)


def waiting_use(journal: Journal, offer: Offer, after: int) -> float | None:
    """Percent of what could be let in while work waited that was: 100 means that no permit was idle.

    Of a bucket of the account's own shape, charged at admissions, what it refills during a wait may be let in
    by its end, and more if it held something before. What piles up in it meanwhile, or flows over, is lost.
    """
    bucket = Held(offer)
    calls = iter(admissions(journal, offer.binding))
    call = next(calls, None)
    used = supply = 0.0
    for start, end in journal.waits:
        begin = min(max(start, after), end)
        # A call in the instant in which the wait begins was made before it: it emptied the bucket.
        while call is not None and call[0] <= begin:
            bucket.take(*call)
            call = next(calls, None)
        bucket.refill(begin)
        before, bucket.lost = bucket.level, 0.0
        let_in = 0
        while call is not None and call[0] <= end:
            bucket.take(*call)
            let_in += call[1]
            call = next(calls, None)
        bucket.refill(end)
        used += let_in
        supply += let_in + bucket.lost + max(0.0, bucket.level - before)
    return 100 * used / supply if supply > 0 else None


class Held:
    """The scarcest limit as a bucket, full at the start. `lost`: what flowed over."""

    def __init__(self, offer: Offer) -> None:
        self._rate = offer.per_minute[offer.binding] / 60 / NS
        self._most = self.level = offer.per_minute[offer.binding] * offer.burst_s / 60
        self._at, self.lost = 0, 0.0

    def refill(self, at: int) -> None:
        """Go on to a later moment."""
        level = self.level + self._rate * (at - self._at)
        self.lost += max(0.0, level - self._most)
        self.level, self._at = min(self._most, level), at

    def take(self, at: int, permits: int) -> None:
        """Charge a call; the level may go below 0, since an answer may be longer than what there was."""
        self.refill(at)
        self.level -= permits

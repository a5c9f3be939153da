"""A line: one tenant's waiting jobs for one gate, in the order of their keys.

Jobs are kept sorted in short blocks: joining at the back and leaving at the front are O(1) but for a shift of
at most one block, leaving from the middle is a binary search plus that shift, and the sum of work makes a
quote for a newcomer O(1).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from scheduler.core.policy import Cause

if TYPE_CHECKING:
    from scheduler.core.account import Projection
    from scheduler.core.agenda import Agenda
    from scheduler.core.entry import Entry
    from scheduler.core.gate import Gate
    from scheduler.core.tenant import Tenant

BLOCK = 256
"""Jobs in a block; a full one is split in two."""

NEVER = 1 << 62
"""A deadline that does not come."""

_key = attrgetter("key")


class Onset:
    """When a line will be late, apart from its own events."""

    __slots__ = ("line", "placed")

    def __init__(self, line: Line) -> None:
        self.line = line
        self.placed: tuple[Any, ...] | None = None

    def __lt__(self, other: Onset) -> bool:
        return self.line < other.line


def _last_key(block: list[Entry]) -> int:
    return block[-1].key


def urgency(entry: Entry) -> tuple[int, int]:
    """By which jobs are ordered whose deadlines decide: those without one go last, in their order."""
    return NEVER if entry.expires is None else entry.expires, entry.key


def _item(entry: Entry) -> tuple[int, int, Entry]:
    return (*urgency(entry), entry)


class Line:
    """The waiting jobs of `tenant` for `gate`.

    `front` is the job whose turn is being arranged, `placed` its item in `agenda` (the engine's, while it
    waits for permits of its tenant, or the gate's, once it is eligible). `outside` counts jobs that belong
    to the line but stand outside it: in backoff, or behind another job of their session. `work` sums the
    waiting jobs' amounts per bucket of the tenant. `tail` remembers how the buckets will stand behind the
    last job, where that takes a walk. `tightest` is the shortest `max_wait` anybody joined with. `late` says
    until when a named cause has delayed the line. `urgent` has its jobs by their deadlines, while that is
    their order; those that have left are skipped when they surface. `onset`: when another order will hold.
    """

    __slots__ = (
        "agenda",
        "blocks",
        "continuations",
        "front",
        "gate",
        "late",
        "onset",
        "outside",
        "placed",
        "size",
        "tail",
        "tenant",
        "tightest",
        "urgent",
        "work",
    )

    def __init__(self, tenant: Tenant, gate: Gate) -> None:
        self.tenant = tenant
        self.gate = gate
        self.blocks: list[list[Entry]] = []
        self.continuations: list[Entry] | None = None
        self.size = 0
        self.outside = 0
        self.work = [0] * len(tenant.zeros)
        self.front: Entry | None = None
        self.placed: tuple[Any, ...] | None = None
        self.agenda: Agenda[Any] | None = None
        self.late: dict[Cause, int] | None = None
        self.onset: Onset | None = None
        self.tail: Projection | None = None
        self.tightest: int | None = None
        self.urgent: list[tuple[int, int, Entry]] | None = None

    @property
    def length(self) -> int:
        """Jobs that belong to the line, in it or outside; continuations are not among them."""
        return self.size + self.outside

    @property
    def empty(self) -> bool:
        """Whether nobody stands in the line or belongs to it."""
        return not self.size and not self.outside and not self.continuations

    def __lt__(self, other: Line) -> bool:
        return (self.tenant.name, self.gate.name) < (other.tenant.name, other.gate.name)

    @property
    def parted(self) -> bool:
        """Whether it depends on a slot whose turn it is: a job's, or a continuation's with a later key."""
        return bool(self.blocks and self.continuations) and self.head(True) is not self.head(False)

    def head(self, slot: bool) -> Entry | None:
        """Whose turn it is, given whether a slot is to be had: continuations bring their own."""
        first = self.blocks[0][0] if slot and self.blocks else None
        if self.continuations:
            run = self.continuations[0]
            if first is None or run.key < first.key:
                return run
        return first

    def last(self) -> Entry:
        """The job that came last."""
        return self.blocks[-1][-1]

    def most_urgent(self) -> Entry:
        """The job whose deadline comes first; of those without one, the first in line. O(log n) amortised."""
        if self.urgent is None:
            self.urgent = [_item(entry) for block in self.blocks for entry in block]
            heapify(self.urgent)
        while True:
            entry = self.urgent[0][2]
            if self.holds(entry):
                return entry
            heappop(self.urgent)

    def holds(self, entry: Entry) -> bool:
        """Whether a job stands in this line."""
        if not self.blocks or entry.key > self.blocks[-1][-1].key:
            return False
        block = self.blocks[bisect_left(self.blocks, entry.key, key=_last_key)]
        index = bisect_left(block, entry.key, key=_key)
        return index < len(block) and block[index] is entry

    def push(self, entry: Entry) -> None:
        """Let a job in, at the place of its key."""
        self._add_work(entry, 1)
        if self.urgent is not None and entry.holder is None:
            heappush(self.urgent, _item(entry))
        if entry.holder is not None:
            if self.continuations is None:
                self.continuations = []
            insort(self.continuations, entry, key=_key)
            return
        self.size += 1
        blocks = self.blocks
        if not blocks or entry.key > blocks[-1][-1].key:
            self._append(entry)
            return
        index = bisect_left(blocks, entry.key, key=_last_key)
        block = blocks[index]
        insort(block, entry, key=_key)
        if len(block) > BLOCK:
            half = len(block) // 2
            blocks.insert(index + 1, block[half:])
            del block[half:]

    def append(self, entry: Entry, unit: int) -> None:
        """Let in a plain job whose key is the last, and which asks for `unit` of the tenant's one bucket."""
        self.work[0] += unit
        self.size += 1
        self._append(entry)

    def _append(self, entry: Entry) -> None:
        blocks = self.blocks
        if blocks and len(blocks[-1]) < BLOCK:
            blocks[-1].append(entry)
        else:
            blocks.append([entry])

    def pop(self, unit: int) -> None:
        """Let the first job out, a plain one."""
        self.work[0] -= unit
        self.size -= 1
        block = self.blocks[0]
        del block[0]
        if not block:
            del self.blocks[0]

    def second(self) -> Entry | None:
        """The job behind the first one, if there is any."""
        block = self.blocks[0]
        if len(block) > 1:
            return block[1]
        return self.blocks[1][0] if len(self.blocks) > 1 else None

    def remove(self, entry: Entry) -> None:
        """Let a job out, from wherever it stands in the line."""
        self._add_work(entry, -1)
        if entry.holder is not None:
            if self.continuations is not None:
                self.continuations.remove(entry)
            return
        self.size -= 1
        if self.urgent is not None and len(self.urgent) > 2 * self.size + BLOCK:
            self.urgent = None  # most of it has left: made anew when it is asked for
        block, index = self.blocks[0], 0
        if entry is block[0]:
            del block[0]
        else:
            index = bisect_left(self.blocks, entry.key, key=_last_key)
            block = self.blocks[index]
            del block[bisect_left(block, entry.key, key=_key)]
        if not block:
            del self.blocks[index]

    def _add_work(self, entry: Entry, sign: int) -> None:
        only = self.tenant.shape.only
        if only is not None and entry.plain:
            self.work[0] += sign * only.unit
        elif not entry.paid:
            for index, amount in enumerate(self.tenant.shape.amounts(entry.cost)):
                self.work[index] += sign * amount

    def __iter__(self) -> Iterator[Entry]:
        """The jobs in the line in the order in which they go."""
        runs = list(self.continuations or ())
        for block in self.blocks:
            for entry in block:
                while runs and runs[0].key < entry.key:
                    yield runs.pop(0)
                yield entry
        yield from runs

    def is_last(self, key: int) -> bool:
        """Whether a job of this key would join at the back."""
        if self.continuations and key < self.continuations[-1].key:
            return False
        return not self.blocks or key > self.blocks[-1][-1].key

    def ahead(self, key: int) -> int:
        """How many jobs in the line go before one of this key, O(√n) in a long line."""
        runs = bisect_left(self.continuations, key, key=_key) if self.continuations else 0
        if not self.blocks or key > self.blocks[-1][-1].key:
            return self.size + runs
        index = bisect_left(self.blocks, key, key=_last_key)
        before = sum(map(len, self.blocks[:index]))
        return before + bisect_left(self.blocks[index], key, key=_key) + runs

    def tighten(self, bound: int | None) -> None:
        """Note the `max_wait` of a job that joins."""
        if bound is not None and (self.tightest is None or bound < self.tightest):
            self.tightest = bound

    def recount(self) -> None:
        """Sum the work anew after the tenant's quota changed."""
        self.work = [0] * len(self.tenant.zeros)
        for entry in self:
            self._add_work(entry, 1)

    def delay(self, cause: Cause, until: int) -> None:
        """Note that a cause may have delayed whoever has arrived by `until`."""
        if self.late is None:
            self.late = {}
        self.late[cause] = max(until, self.late.get(cause, until))

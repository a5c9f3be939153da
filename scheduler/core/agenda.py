"""Heaps whose items can be dropped from the middle: an item stays behind and is skipped when it surfaces.

An item is a tuple that ends in its owner; the owner's `placed` is the one item that counts. Dropping is O(1),
everything else O(log n) amortised, and stale items never outnumber the live ones for long.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

Item = TypeVar("Item", bound=tuple[Any, ...])

SLACK = 64
"""Stale items below which a rebuild is not worth its while."""

DAY = 27
"""Bits of a time within a day of a calendar: 134 ms of nanoseconds."""


class Agenda(Generic[Item]):
    """Items in ascending order, each owned by the object at its end."""

    __slots__ = ("items", "stale")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.stale = 0

    def __iter__(self) -> Iterator[Item]:
        """The items that count, in no order."""
        return (item for item in self.items if item[-1].placed is item)

    def __len__(self) -> int:
        """Items, the stale ones included."""
        return len(self.items)

    def put(self, item: Item) -> None:
        """Add an item; its owner must not have another one placed anywhere."""
        item[-1].placed = item
        heappush(self.items, item)

    def drop(self, owner: Any) -> None:
        """Forget the owner's item, which must be in this agenda."""
        owner.placed = None
        self.stale += 1
        if self.stale > SLACK and 2 * self.stale > len(self):
            self._sweep()

    def _sweep(self) -> None:
        """Take the stale items out."""
        self.items = list(self)
        heapify(self.items)
        self.stale = 0

    def first(self) -> Item | None:
        """The least item that counts, left in place."""
        while self.items:
            item = self.items[0]
            if item[-1].placed is item:
                return item
            self._take()
            self.stale -= 1
        return None

    def pop(self) -> None:
        """Take away the item that `first` returned."""
        self._take()[-1].placed = None

    def _take(self) -> Item:
        return heappop(self.items)


class Calendar(Agenda[Item]):
    """An agenda of times in nanoseconds, made for a million of them.

    One large heap costs a row of cache misses for every step down. So each day to come has a heap of its own,
    and `items` is that of the days up to `today`: it is small, and empty only if nothing is to come. This is
    the calendar queue (Brown, CACM 31(10), 1988) with days that exist only while they have items.
    """

    __slots__ = ("_count", "_days", "_later", "today")

    def __init__(self) -> None:
        super().__init__()
        self.today = 0
        self._later: dict[int, list[Item]] = {}
        self._days: list[int] = []
        self._count = 0

    def __iter__(self) -> Iterator[Item]:
        for items in (self.items, *self._later.values()):
            yield from (item for item in items if item[-1].placed is item)

    def __len__(self) -> int:
        return self._count

    def put(self, item: Item) -> None:
        """Add an item; its owner must not have another one placed anywhere."""
        item[-1].placed = item
        self._count += 1
        day = item[0] >> DAY
        if day <= self.today:
            heappush(self.items, item)
        elif not self.items:  # then no day to come has any
            self.today = day
            self.items.append(item)
        elif day in self._later:
            heappush(self._later[day], item)
        else:
            self._later[day] = [item]
            heappush(self._days, day)

    def _sweep(self) -> None:
        live = sorted(self)
        self.items, self._later, self._days = [], {}, []
        self._count = self.stale = 0
        for item in live:
            self.put(item)

    def _take(self) -> Item:
        item = heappop(self.items)
        self._count -= 1
        if not self.items and self._days:
            self.today = heappop(self._days)
            self.items = self._later.pop(self.today)
        return item

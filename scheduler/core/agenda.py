"""A heap whose items can be dropped from the middle: the item stays behind and is skipped when it surfaces.

An item is a tuple that ends in its owner; the owner's `placed` is the one item that counts. Dropping is O(1),
everything else O(log n) amortised, and stale items never outnumber the live ones for long.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

Item = TypeVar("Item", bound=tuple[Any, ...])

SLACK = 64
"""Stale items below which a rebuild is not worth its while."""


class Agenda(Generic[Item]):
    """Items in ascending order, each owned by the object at its end."""

    __slots__ = ("items", "stale")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.stale = 0

    def put(self, item: Item) -> None:
        """Add an item; its owner must not have another one placed anywhere."""
        item[-1].placed = item
        heappush(self.items, item)

    def drop(self, owner: Any) -> None:
        """Forget the owner's item, which must be in this agenda."""
        owner.placed = None
        self.stale += 1
        if self.stale > SLACK and 2 * self.stale > len(self.items):
            self.items = [item for item in self.items if item[-1].placed is item]
            heapify(self.items)
            self.stale = 0

    def first(self) -> Item | None:
        """The least item that counts, left in place."""
        items = self.items
        while items:
            item = items[0]
            if item[-1].placed is item:
                return item
            heappop(items)
            self.stale -= 1
        return None

    def pop(self) -> None:
        """Take away the item that `first` returned."""
        heappop(self.items)[-1].placed = None

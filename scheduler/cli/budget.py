"""A bound on the bytes that are held at a time."""

from __future__ import annotations

import asyncio


class Budget:
    """So many bytes at a time, first come first served; an item above the budget goes alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._changed = asyncio.Condition()

    async def acquire(self, size: int) -> None:
        """Wait until there is room."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._held or self._held + size <= self._most)
            self._held += size

    async def release(self, size: int) -> None:
        """Give room back."""
        async with self._changed:
            self._held -= size
            self._changed.notify_all()

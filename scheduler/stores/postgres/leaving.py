"""Leaving: what callers of this process have ended is recorded in the background, and waited for."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine
from functools import partial
from typing import Any

from scheduler.stores.postgres.opened import Opened


class Leaving:
    """The records of what has ended here that are under way, by tenant."""

    def __init__(self, store: Opened) -> None:
        self._store = store
        self._ending: dict[str, set[asyncio.Task[None]]] = defaultdict(set)

    def _end(self, tenant: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            task = self._store.group.create_task(work)
        except RuntimeError:  # the store is closed: the lease will tell
            work.close()
            return
        ending = self._ending[tenant]
        ending.add(task)
        task.add_done_callback(partial(self._ended, tenant))

    def _ended(self, tenant: str, task: asyncio.Task[None]) -> None:
        self._ending[tenant].discard(task)
        if not self._ending[tenant]:
            del self._ending[tenant]

    async def recorded(self, tenant: str | None = None) -> None:
        """Return when what has ended here so far, of one tenant or of all, is in the database.

        Who comes after it must find its slot free and what it gave back there.
        """
        tasks = self._ending.get(tenant, set()) if tenant is not None else set().union(*self._ending.values())
        if tasks:
            await asyncio.wait(set(tasks))

"""What a scheduler needs of a store."""

# ruff: noqa: D102 - what the methods do is said once, in `scheduler.stores.postgres.PostgresStore`

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from scheduler.core.policy import Outlook
from scheduler.core.quota import Quota
from scheduler.stores.values import Accepted, Known, Outcome, Request


class Store(Protocol):
    """What a scheduler needs of a store. See `scheduler.stores.postgres.PostgresStore`."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, *error: Any) -> None: ...

    def until(self, time: int) -> float: ...

    async def submit(self, request: Request) -> Accepted: ...

    async def submit_in(self, connection: Any, request: Request) -> Accepted: ...

    def cancel_soon(self, job: int, tenant: str) -> None: ...

    async def look(self, job: int, tenant: str) -> Known | None: ...

    def await_outcome(self, job: int) -> asyncio.Future[Outcome]: ...

    async def quote(self, request: Request) -> tuple[Outlook, int]: ...

    async def set_quota(self, tenant: str, quota: Quota, first: Quota) -> None: ...

    async def count(self, tenant: str | None) -> dict[str, Any]: ...

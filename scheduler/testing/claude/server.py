"""The simulated API as a server on the loopback interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from scheduler.testing.claude.config import ClaudeConfig
from scheduler.testing.claude.faults import Fault
from scheduler.testing.claude.http import Connection, Exchange, Listener
from scheduler.testing.claude.oracle import Attempt, ClaudeStatistics
from scheduler.testing.claude.routes import body_bytes_max, handle
from scheduler.testing.claude.simulation import Simulation

LOOPBACK = "127.0.0.1"
# Connections that the kernel accepts before the loop gets to them: a burst of clients must not be refused.
BACKLOG = 2_048


class SimulatedClaude:
    """A Messages API that behaves like Anthropic's, with the limits, latencies and faults it is given.

    Use it as an async context manager, or `await start()` and `await aclose()`. It binds to the loopback
    interface and a free port unless told otherwise. The same seed and the same order of requests give the
    same answers and faults.
    """

    def __init__(
        self, config: ClaudeConfig | None = None, *, seed: int = 0, host: str = LOOPBACK, port: int = 0
    ) -> None:
        self._simulation = Simulation(config or ClaudeConfig(), seed)
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    async def __aenter__(self) -> SimulatedClaude:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> str:
        """Listen, and return the base URL; raises `OSError` when the port is taken."""
        if self._server is not None:
            raise RuntimeError("the simulated Claude has been started already")
        listener = Listener(self._handle, self._now_ns, self._bytes_max, self._config, self._connections)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(listener), self._host, self._port, backlog=BACKLOG
        )
        return self.base_url

    async def aclose(self) -> None:
        """Stop listening, drop every connection and wait until all of that has happened."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        for connection in tuple(self._connections):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    @property
    def base_url(self) -> str:
        """Where it listens, as the SDK's `base_url` takes it."""
        if self._server is None:
            raise RuntimeError("the simulated Claude has not been started")
        port = self._server.sockets[0].getsockname()[1]
        return f"http://{self._host}:{port}"

    @property
    def config(self) -> ClaudeConfig:
        """The configuration in force."""
        return self._simulation.config

    @property
    def requests(self) -> list[Attempt]:
        """The oracle's log in order of arrival: one record per attempt, filled in while the request runs."""
        return list(self._simulation.oracle.attempts)

    def stats(self) -> ClaudeStatistics:
        """Return the oracle's sums."""
        return self._simulation.oracle.statistics()

    def configure(self, config: ClaudeConfig) -> None:
        """Take a new configuration and start anew, as `reset` does."""
        self._simulation.configure(config)

    def add_faults(self, *faults: Fault) -> None:
        """Put more faults behind those in force."""
        self._simulation.add_faults(faults)

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._simulation.clear_faults()

    def reset(self) -> None:
        """Empty the log, fill the buckets, set the simulated clock and all counts to zero."""
        self._simulation.reset()

    def _config(self) -> ClaudeConfig:
        return self._simulation.config

    def _now_ns(self) -> int:
        return self._simulation.time.now_ns()

    def _bytes_max(self, method: str, path: str) -> int:
        return body_bytes_max(self._simulation.config, method, path)

    async def _handle(self, exchange: Exchange) -> None:
        await handle(self._simulation, exchange)


async def serve(
    config: ClaudeConfig | None = None,
    *,
    seed: int = 0,
    host: str = LOOPBACK,
    port: int = 0,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Run a simulated API until cancelled; `on_ready` is called with the base URL once it listens."""
    async with SimulatedClaude(config, seed=seed, host=host, port=port) as claude:
        if on_ready is not None:
            on_ready(claude.base_url)
        await asyncio.get_running_loop().create_future()

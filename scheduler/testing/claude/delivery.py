"""Sending an answer at the speed of a model, and charging its tokens as they are produced."""

from __future__ import annotations

from scheduler.testing.claude.errors import Headers
from scheduler.testing.claude.frames import PING, Delivery, Frame
from scheduler.testing.claude.http import Exchange
from scheduler.testing.claude.limits import Limiter
from scheduler.testing.claude.oracle import Attempt
from scheduler.testing.claude.simulation import Simulation

# Frames due within this time of each other leave in one write: the event loop's timers are no finer than a
# millisecond.
TOGETHER_NS = 500_000
# Frames without data only charge tokens, which may be a little early.
CHARGE_EARLY_NS = 20_000_000


async def deliver(
    simulation: Simulation, exchange: Exchange, attempt: Attempt, delivery: Delivery, limiter: Limiter
) -> None:
    """Send an answer and return when it has been sent, cut or reset."""
    exchange.start(200, [*_head(simulation, attempt, delivery), *simulation.rate_headers(limiter)])
    attempt.status = 200
    player = _Player(simulation, exchange, attempt, limiter, pings=delivery.events)
    await player.first_token()
    await player.play(delivery.frames)


def _head(simulation: Simulation, attempt: Attempt, delivery: Delivery) -> Headers:
    content_type = "text/event-stream; charset=utf-8" if delivery.events else "application/json"
    headers = simulation.common_headers(attempt.request_id, content_type)
    if delivery.events:
        headers.append(("cache-control", "no-cache"))
    if delivery.length is None:
        headers.append(("transfer-encoding", "chunked"))
    else:
        headers.append(("content-length", str(delivery.length)))
    return headers


class _Player:
    """Plays the frames of one answer against the clock."""

    def __init__(
        self, simulation: Simulation, exchange: Exchange, attempt: Attempt, limiter: Limiter, *, pings: bool
    ) -> None:
        self._simulation = simulation
        self._time = simulation.time
        self._latency = simulation.config.latency
        self._exchange = exchange
        self._attempt = attempt
        self._limiter = limiter
        self._pings = pings
        self._due_ns = self._time.now_ns()
        self._pinged_ns = self._due_ns
        self._batch: list[bytes] = []
        self._tokens = 0

    async def first_token(self) -> None:
        """Wait as long as the first token takes."""
        latency, attempt = self._latency, self._attempt
        wait_s = latency.ttft_base_s
        if latency.prefill_tps is not None:
            fresh = attempt.input_tokens + attempt.cache_creation_input_tokens
            wait_s += fresh / latency.prefill_tps
        if wait_s and latency.jitter:
            wait_s *= self._simulation.draw(attempt.number, "ttft").lognormvariate(0.0, latency.jitter)
        self._due_ns += self._time.real_ns(wait_s)
        await self._time.sleep_until(self._due_ns)
        self._pinged_ns = self._due_ns

    async def play(self, frames: tuple[Frame, ...]) -> None:
        """Send every frame when it is due; those due together in one write."""
        now_ns = self._time.now_ns()
        for frame in frames:
            if frame.pause_s:
                await self._flush(last=False)
                self._due_ns = max(self._due_ns, self._time.now_ns()) + self._time.real_ns(frame.pause_s)
                await self._time.sleep_until(self._due_ns)
                now_ns = self._time.now_ns()
            self._due_ns += self._decoding_ns(frame.tokens)
            if self._due_ns > now_ns + (TOGETHER_NS if frame.data else CHARGE_EARLY_NS):
                if self._batch:
                    await self._flush(last=False)
                self._charge()
                await self._wait()
                now_ns = self._time.now_ns()
            self._tokens += frame.tokens
            if frame.data:
                self._batch.append(frame.data)
            if frame.end is not None:
                await self._flush(last=False)
                self._exchange.end(frame.end)
                return
        await self._flush(last=True)

    def _decoding_ns(self, tokens: int) -> int:
        speed = self._latency.decode_tps
        if speed is None or not tokens:
            return 0
        capacity = self._latency.capacity
        slower = max(1.0, self._simulation.oracle.in_flight / capacity) if capacity is not None else 1.0
        return self._time.real_ns(tokens / speed * slower)

    async def _wait(self) -> None:
        """Sleep until the next frame is due, with a ping whenever one is due before it."""
        every_ns = max(self._time.real_ns(self._latency.ping_every_s), TOGETHER_NS)
        while self._pings and (ping_ns := self._pinged_ns + every_ns) <= self._due_ns:
            await self._time.sleep_until(ping_ns)
            self._pinged_ns = self._time.now_ns()
            self._batch.append(PING)
            await self._flush(last=False)
        await self._time.sleep_until(self._due_ns)

    async def _flush(self, *, last: bool) -> None:
        """Charge the tokens produced and send what they became."""
        self._charge()
        data, self._batch = b"".join(self._batch), []
        if data and self._attempt.ttft_ns is None:
            self._attempt.ttft_ns = self._time.now_ns() - self._attempt.arrival_ns
        await self._exchange.send(data, last=last)

    def _charge(self) -> None:
        tokens, self._tokens = self._tokens, 0
        if not tokens:
            return
        self._limiter.charge_output(self._time.simulated_ns(self._time.now_ns()), tokens)
        self._attempt.output_tokens += tokens
        if self._exchange.disconnect_ns is not None:
            self._attempt.output_tokens_after_disconnect += tokens

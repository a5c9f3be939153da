"""The prompts that are played: synthetic, or a file's, with tenants and service times from a seed.

A prompt's tokens, its time to the first token and its speed are drawn once, so that every row and every load
is asked the same and, where it is answered at once, answered alike.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.measure import NS

TENANTS = 50
NOISY = 6
"""How many tenants, from the first, are called noisy: three quarters of the prompts are theirs."""

SKEW = 1.4
"""The k-th tenant's share of the prompts is in proportion to 1 / k ** SKEW."""

PROMPTS_PER_S = 5.5
"""The mean rate of the public trace of a conversation service that this stands in for."""

TTFT_S = 0.4
PREFILL_PER_S = 10_000
DECODE_PER_S = 80
JITTER = 0.25
"""The defaults of the simulated Claude on loopback: its floor, its speeds, and the σ of their lognormal."""

GUESS_ERROR = 0.1
"""How far, at most, a client's own count of a prompt's tokens is off."""

LONGEST_INPUT, LONGEST_OUTPUT = 14_000, 2_000


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of the trace. Times in nanoseconds; `arrival` from the start of the trace.

    Only `guessed_input` may be known to whoever sends it; how long the answer will be, nobody knows.
    """

    number: int
    tenant: str
    arrival: int
    input_tokens: int
    output_tokens: int
    guessed_input: int
    first: int
    per_token: int

    @property
    def amounts(self) -> tuple[int, int, int]:
        """What its answer uses: requests, input tokens, output tokens."""
        return 1, self.input_tokens, self.output_tokens


@dataclass(frozen=True)
class Trace:
    """Prompts in the order of their arrival, and who is noisy. `length`: nanoseconds of arrivals."""

    name: str
    prompts: tuple[Prompt, ...]
    noisy: frozenset[str]
    length: int

    def of(self, tenant: str) -> tuple[Prompt, ...]:
        """One tenant's prompts."""
        return tuple(prompt for prompt in self.prompts if prompt.tenant == tenant)

    @property
    def quiet(self) -> list[str]:
        """Everybody with prompts who is not noisy."""
        return sorted({prompt.tenant for prompt in self.prompts} - self.noisy)

    def per_minute(self) -> tuple[float, float, float]:
        """The demand: requests, input and output tokens a minute, on average."""
        minutes = self.length / NS / 60
        sums = (sum(amounts) / minutes for amounts in zip(*(p.amounts for p in self.prompts), strict=True))
        requests, input_tokens, output_tokens = sums
        return requests, input_tokens, output_tokens


def tenant_names(tenants: int) -> list[str]:
    """Names that sort in the order of demand."""
    return [f"tenant-{number:02}" for number in range(1, tenants + 1)]


def shares(tenants: int) -> list[float]:
    """The part of the prompts that is each tenant's."""
    weights = [1 / rank**SKEW for rank in range(1, tenants + 1)]
    return [weight / sum(weights) for weight in weights]


def lognormal(draw: random.Random, median: float, sigma: float, most: int) -> int:
    """A whole number from 1 to `most`."""
    return min(most, max(1, round(median * math.exp(sigma * draw.gauss(0, 1)))))


def prompt_of(
    draw: random.Random, number: int, tenant: str, arrival: int, input_tokens: int, output_tokens: int
) -> Prompt:
    """Draw what the upstream will take for a prompt, and what a client counts its tokens to be."""
    first = (TTFT_S + input_tokens / PREFILL_PER_S) * math.exp(JITTER * draw.gauss(0, 1))
    per_token = math.exp(JITTER * draw.gauss(0, 1)) / DECODE_PER_S
    guessed = max(1, round(input_tokens * (1 + GUESS_ERROR * draw.uniform(-1, 1))))
    return Prompt(
        number,
        tenant,
        arrival,
        input_tokens,
        output_tokens,
        guessed,
        round(first * NS),
        round(per_token * NS),
    )


def arrivals(draw: random.Random, prompts: int, noisy: bool, seconds: float) -> Iterator[float]:
    """When a tenant's prompts come, in seconds: at random, and two fifths each in two imports if it is noisy.

    The imports of all noisy tenants begin within the same tenth of the trace and last another tenth each.
    """
    imported = 2 * prompts // 5 if noisy else 0
    for begin in (0.1, 0.5):
        start, length = seconds * (begin + 0.1 * draw.random()), seconds * 0.1
        for place in range(imported):
            yield start + length * place / imported
    for _ in range(prompts - 2 * imported):
        yield draw.uniform(0, seconds)


def synthetic(seed: int, minutes: float, tenants: int = TENANTS, noisy: int = NOISY) -> Trace:
    """A trace that needs no file: lognormal tokens around medians of the tenant's own.

    Answers are long enough for output tokens to be what binds, the one amount that nobody knows beforehand.
    """
    draw = random.Random(f"trace {seed}")
    seconds, drawn = minutes * 60, []
    for rank, (name, share) in enumerate(zip(tenant_names(tenants), shares(tenants), strict=True)):
        scale_in, scale_out = (math.exp(0.25 * draw.gauss(0, 1)) for _ in range(2))
        prompts = max(2, round(share * PROMPTS_PER_S * seconds))
        for at in arrivals(draw, prompts, rank < noisy, seconds):
            input_tokens = lognormal(draw, 1100 * scale_in, 0.9, LONGEST_INPUT)
            output_tokens = lognormal(draw, 380 * scale_out, 0.8, LONGEST_OUTPUT)
            drawn.append((round(at * NS), name, input_tokens, output_tokens))
    drawn.sort()
    found = (
        prompt_of(draw, number, name, at, input_tokens, output_tokens)
        for number, (at, name, input_tokens, output_tokens) in enumerate(drawn)
    )
    names = frozenset(tenant_names(tenants)[:noisy])
    return Trace(f"synthetic, seed {seed}", tuple(found), names, round(seconds * NS))


def read(path: Path, seed: int, minutes: float, tenants: int = TENANTS, noisy: int = NOISY) -> Trace:
    """The first minutes of a file with the columns TIMESTAMP, ContextTokens and GeneratedTokens.

    It names no tenants: each line gets one by a draw with the same skewed shares.
    """
    draw = random.Random(f"tenants {seed}")
    names, weights = tenant_names(tenants), shares(tenants)
    found: list[Prompt] = []
    start: datetime | None = None
    with path.open(newline="", encoding="utf-8") as lines:
        for line in csv.DictReader(lines):
            # Some files have seven decimals, one more than Python reads.
            time = datetime.fromisoformat(line["TIMESTAMP"].strip()[:26])
            start = start or time
            at = round((time - start).total_seconds() * NS)
            if at > minutes * 60 * NS:
                break
            (name,) = draw.choices(names, weights)
            sizes = int(line["ContextTokens"]), max(1, int(line["GeneratedTokens"]))
            found.append(prompt_of(draw, len(found), name, at, *sizes))
    if not found:
        raise ValueError(f"trace: {path.name} has no lines")
    found.sort(key=lambda prompt: prompt.arrival)
    return Trace(f"{path.name}, seed {seed}", tuple(found), frozenset(names[:noisy]), found[-1].arrival)

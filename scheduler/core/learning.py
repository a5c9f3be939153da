"""Learning: what a job will probably use, by what was counted of it and what earlier ones used.

The arithmetic only, the same wherever the means are kept. A mean is [surplus, output]: what real inputs have
beyond the count (a system prompt, tools, a history), and how long answers are, both exponential. There is one
for each tenant at each gate, and one for each gate, where a tenant that is not known yet begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scheduler.core.account import Shape
from scheduler.core.quota import DIMENSIONS, WORD, Cost, Usage

PART = 1 / 8
"""A mean moves by this part of what differs."""

MOST = 1 << 50
"""Tokens of one call that are learned from: with any more an estimate would not fit where costs are kept."""

Mean = list[float]


class Knobs(NamedTuple):
    """What is assumed: `output_tokens` before anything is learned, and `margin` times the mean after that."""

    output_tokens: int
    margin: float


def estimate(counted: int, learned: Sequence[float] | None, knobs: Knobs) -> Cost:
    """What a job of so many counted input tokens will probably use; `learned` None where nobody knows."""
    if learned is None:
        read, written = counted, knobs.output_tokens
    else:
        read, written = counted + round(learned[0]), round(learned[1] * knobs.margin)
    if not (0 < read < WORD and 0 < written < WORD):
        read, written = max(1, min(read, WORD - 1)), max(1, min(written, WORD - 1))
    return Cost(1, read, written)


def within(cost: Cost, counted: int, tenant: Shape, gate: Shape | None) -> Cost:
    """An estimate that fits what limits its tenant and its gate, unless what was counted does not."""
    if tenant.never(cost) is not None:
        cost = fitted(cost, counted, tenant)
    if gate is not None and gate.never(cost) is not None:
        cost = fitted(cost, counted, gate)
    return cost


def fitted(cost: Cost, counted: int, shape: Shape) -> Cost:
    """An estimate that was learned must not refuse a job for ever: only what was counted may be too large."""
    most = {
        DIMENSIONS[index]: scale.capacity // scale.unit
        for index, scale in zip(shape.limits, shape.scales, strict=True)
    }
    return Cost(
        cost.requests,
        min(cost.input_tokens, max(counted, most.get("input_tokens", cost.input_tokens))),
        min(cost.output_tokens, most.get("output_tokens", cost.output_tokens)),
    )


def learn(known: Mean | None, told: Mean | None, counted: int, usage: Usage) -> tuple[Mean, Mean]:
    """The means of a tenant and of its gate after a call of so many counted tokens that had an answer.

    None for one that is not there yet; those that are there are changed.
    """
    read, output = usage.input_tokens, usage.output_tokens
    surplus = (read if read < MOST else MOST) - counted
    if output > MOST:
        output = MOST
    if told is None:
        told = [surplus, output]
    if known is None:
        known = [*told]
    known[0] += (surplus - known[0]) * PART
    known[1] += (output - known[1]) * PART
    told[0] += (surplus - told[0]) * PART
    told[1] += (output - told[1]) * PART
    return known, told


def teaches(usage: Usage | None) -> bool:
    """Whether anything is learned from a call: one without output was hardly made."""
    return usage is not None and usage.output_tokens > 0

"""`waitline demo`: four scenes in half a minute, each with what was promised and what was measured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from scheduler import Policy, Quota, Rate
from scheduler.cli import printing
from scheduler.cli.scenes import BareTimer, Prompt, Stage, greetings
from scheduler.cli.screen import live, milliseconds, quantile
from scheduler.cli.wiring import Upstream, quick
from scheduler.runtime.clock import MonotonicClock
from scheduler.testing import Script

ALLOWED = 3
"""Promises may be missed by so many times what a bare timer misses, both at the 99th percentile."""

NOISY = 200
NOISY_RATE = 50
"""The noisy neighbour: prompts at one instant, and its own rate for them."""

HI = "Hi there!"
"""What the simulated Claude answers."""

Scene = Callable[[Stage], Awaitable[None]]


async def refused(stage: Stage) -> None:
    """Eight prompts at once, refused when they cannot start: rate 2/s, burst 5, strict."""
    async with stage.scheduler(2, 5, Policy.strict()) as scheduler:
        await stage.send(scheduler, "strict", "acme", greetings(8))


async def queued(stage: Stage) -> None:
    """The same eight prompts, in a line: all are answered, at the promised times."""
    async with stage.scheduler(2, 5) as scheduler:
        await stage.send(scheduler, "queued", "acme", greetings(8))


async def side_by_side(stage: Stage) -> None:
    """Two tenants at once: each has its own bucket and its own line."""
    async with stage.scheduler(2, 5) as scheduler, asyncio.TaskGroup() as group:
        for tenant in ("acme", "globex"):
            group.create_task(stage.send(scheduler, "two tenants", tenant, greetings(8)))


async def neighbours(stage: Stage) -> None:
    """A noisy neighbour, 200 prompts at 50/s, beside a quiet tenant: once alone, once together."""
    async with stage.scheduler(2, 5, noisy=Quota(Rate(NOISY_RATE, burst=1))) as scheduler:
        await stage.send(scheduler, "quiet alone", "quiet", greetings(8))
    async with (
        stage.scheduler(2, 5, noisy=Quota(Rate(NOISY_RATE, burst=1))) as scheduler,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(stage.send(scheduler, "noisy neighbour", "noisy", greetings(NOISY)))
        group.create_task(stage.send(scheduler, "noisy neighbour", "quiet", greetings(8)))


SCENES: tuple[Scene, ...] = (refused, queued, side_by_side, neighbours)


async def show(upstream: Upstream, *, as_json: bool) -> int:
    """Play the scenes and judge them; returns the exit status."""
    console = printing.console(markup=True)
    async with upstream.agent(quick(Script(contains="Say hi", text=HI))) as (agent, _):
        clock = MonotonicClock()
        stage = Stage(agent, as_json, clock, BareTimer(clock))
        try:
            for number, scene in enumerate(SCENES, 1):
                await play(scene, number, stage, console)
        finally:
            stage.bare.stop()
    return judge(stage, console)


async def play(scene: Scene, number: int, stage: Stage, console: Console) -> None:
    """One scene: a live table while it runs, and the same table after."""
    before = len(stage.prompts)

    def picture() -> RenderableType:
        return table(stage.prompts[before:])

    if stage.as_json:
        await scene(stage)
        return
    console.print(f"\n[bold]{number}. {scene.__doc__}[/bold]", soft_wrap=True)
    with live(picture, console) if console.is_terminal else nullcontext():
        await scene(stage)
    console.print(picture())


def table(prompts: list[Prompt]) -> RenderableType:
    """The prompts of a scene; of a long line only how far it is."""
    lines: dict[tuple[str, str], list[Prompt]] = {}
    for prompt in prompts:
        lines.setdefault((prompt.scene, prompt.tenant), []).append(prompt)
    several = len({scene for scene, _ in lines}) > 1
    rows = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    if several:
        rows.add_column("", min_width=9)  # of two words, which a narrow terminal shows below each other
    for name, width in (("tenant", 6), ("prompt", 8)):
        rows.add_column(name, min_width=width, no_wrap=True)
    for name in ("promised", "measured"):
        rows.add_column(name, min_width=8, justify="right", no_wrap=True)
    rows.add_column("reply", min_width=9, overflow="fold")
    notes: list[RenderableType] = []
    for (scene, tenant), line in lines.items():
        if len(line) > 20:
            notes.append(progress(scene, tenant, line))
            continue
        for prompt in line:
            rows.add_row(*([scene] if several else []), tenant, prompt.text, *cells(prompt))
    return Group(rows, *notes)


def cells(prompt: Prompt) -> tuple[str, str, Text]:
    """Promise, measurement and reply of one prompt."""
    if prompt.refused is not None:
        return "", "", Text(f"BLOCKED - wait {round(prompt.refused * 1e3)}ms", style="red")
    promised = "" if prompt.promised is None else f"{prompt.promised:.3f} s"
    measured = "" if prompt.started is None else f"{prompt.started:.3f} s"
    if prompt.failed is not None:
        return promised, measured, Text(prompt.state, style="red")
    return promised, measured, Text(prompt.reply or prompt.state, style="" if prompt.reply else "dim", end="")


def progress(scene: str, tenant: str, line: list[Prompt]) -> Text:
    """How far a long line is."""
    answered = sum(prompt.reply is not None for prompt in line)
    errors = [abs(prompt.error) for prompt in line if prompt.error is not None]
    missed = f", promises missed by p99 {milliseconds(quantile(errors, 0.99))}" if errors else ""
    return Text(f"  {scene}: {tenant} {answered} of {len(line)} answered{missed}")


def judge(stage: Stage, console: Console) -> int:
    """Sum up; 0 if every prompt was answered in order and the promises held."""
    errors = stage.errors()
    promise, bare = quantile(errors, 0.99), quantile(stage.bare.late, 0.99)
    quiet = {
        scene: [p.started or 0.0 for p in stage.prompts if p.scene == scene and p.tenant == "quiet"]
        for scene in ("quiet alone", "noisy neighbour")
    }
    moved = max(abs(a - b) for a, b in zip(*quiet.values(), strict=True))
    in_order, kept = stage.in_order(), promise <= ALLOWED * bare
    answered = sum(prompt.reply is not None for prompt in stage.prompts)
    blocked = sum(prompt.refused is not None for prompt in stage.prompts)
    failed = sum(prompt.failed is not None for prompt in stage.prompts)
    if stage.as_json:
        summary = {
            "event": "summary", "answered": answered, "refused": blocked, "failed": failed,
            "in_order": in_order,
            "promise_error_p50_s": quantile(errors, 0.5), "promise_error_p99_s": promise,
            "bare_timer_p99_s": bare, "quiet_tenant_moved_s": moved, "ok": in_order and kept,
        }  # fmt: skip
        print(json.dumps(summary), flush=True)
        return 0 if in_order and kept else 1
    console.print(
        f"\n[bold]{answered} prompts answered{'' if in_order else ', NOT in order'}, "
        f"{blocked} refused in strict mode.[/bold]"
    )
    if failed:
        console.print(f"[red]{failed} prompts failed.[/red]")
    console.print(f"The quiet tenant's starts moved by at most {milliseconds(moved)} beside the noisy one.")
    console.print(
        f"Promised against measured start: p50 {milliseconds(quantile(errors, 0.5))}, "
        f"p99 {milliseconds(promise)}. "
        f"A bare timer set for the same instants: p99 {milliseconds(bare)}."
    )
    if not kept:
        console.print(f"[red]The promises were missed by more than {ALLOWED} times the bare timer.[/red]")
    return 0 if in_order and kept else 1

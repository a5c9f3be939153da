"""P7: what it takes until a job is durable."""

from __future__ import annotations

from benchmarks.cases.base import Case, Column
from benchmarks.durable.measuring import fill, installed, many, within_limit
from benchmarks.durable.subjects.base import Load, Subject
from benchmarks.measure import NS, NotPossible, Row, now

LOAD = Load(tenants=1000)

BATCH = 1000


async def paced_by_answer(subject: Subject, jobs: int, callers: int) -> float:
    """Jobs per second while so many callers enqueue one job after the other."""
    begin = now()
    await many(subject, range(jobs), callers)
    return jobs * NS / (now() - begin)


async def batches(subject: Subject, size: int, rounds: int) -> float | None:
    """Jobs per second in batches, one after the other; None if the subject has no way to do it."""
    begin = now()
    try:
        for _ in range(rounds):
            await subject.batch(range(size))
    except NotPossible:
        return None
    return size * rounds * NS / (now() - begin)


async def enqueued(name: str, quick: bool) -> Row:
    """Every tenant has been seen before, and all connections are open."""
    scale = 20 if quick else 1
    async with installed(name, LOAD) as subject:
        share = 6 * scale if subject.slow else scale
        await fill(subject, LOAD.tenants // scale)
        await many(subject, range(100 // scale), 32)
        one = await paced_by_answer(subject, 1200 // share, 1)
        some = await paced_by_answer(subject, 6000 // share, 32)
        crowd = await paced_by_answer(subject, 9000 // share, 1000 // scale)
        return {
            "one": one,
            "some": some,
            "crowd": crowd,
            "best": max(some, crowd),
            "batch": await batches(subject, BATCH // scale, 10),
        }


CASES = (
    Case(
        name="durable-enqueue",
        most=2,
        target="P7",
        title="jobs enqueued per second, each durable when its call returns",
        measure=lambda name, quick: within_limit(enqueued(name, quick)),
        judged=("waitline", "prototype", "PgQueuer", "Procrastinate", "SAQ"),
        beside=("DBOS",),
        columns=(
            Column("one", "one in flight"),
            Column("some", "32 callers"),
            Column("crowd", "1,000 callers"),
            Column("best", "better of the two"),
            Column("batch", "batches of 1,000"),
        ),
        note="Jobs of 1,000 tenants in turn, about 100 bytes each, every tenant known. *Batches of "
        "1,000* are one call of the library, for waitline `enqueue_many`, which answers each job with "
        "its promise or refusal. Procrastinate, SAQ and DBOS are measured with a sixth of the jobs.",
    ),
)

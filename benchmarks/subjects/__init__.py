"""The subjects by the names under which they stand in the tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from benchmarks.subjects import ours, peers
from benchmarks.subjects.base import Load, Subject

OFF = " (collector off)"
"""Ends the name of a subject that is measured without the cyclic garbage collector."""

SUBJECTS: dict[str, type[Subject]] = {
    "waitline": ours.Waitline,
    "waitline submit": ours.WaitlineSubmit,
    "waitline, max_running 1,000,000": ours.WaitlineSlots,
    "waitline, loop timer": ours.WaitlineLoop,
    "waitline, timerfd": ours.WaitlineTimerfd,
    "ideal": ours.IdealSubject,
    "ideal submit": ours.IdealSubmit,
    "ideal, loop timer": ours.IdealLoop,
    "ideal, timerfd": ours.IdealTimerfd,
    "aiolimiter": peers.Aiolimiter,
    "aiolimiter + handler": peers.AiolimiterHandler,
    "pyrate-limiter": peers.Pyrate,
    "pyrate-limiter, buffer 0": peers.PyrateTuned,
    "throttled-py GCRA": peers.ThrottledGcra,
    "asynciolimiter Limiter": peers.AsynciolimiterLimiter,
    "asynciolimiter leaky": peers.AsynciolimiterLeaky,
    "queue + worker task": peers.QueueWorker,
}


@asynccontextmanager
async def opened(name: str, load: Load) -> AsyncIterator[Subject]:
    """A subject under a load, open for the length of the block."""
    subject = SUBJECTS[name.removesuffix(OFF)](load)
    await subject.open()
    try:
        yield subject
    finally:
        await subject.close()


def versions() -> dict[str, str]:
    """The version of every library that is measured."""
    names = {subject.distribution for subject in SUBJECTS.values()} - {None}
    return {name: installed(name) for name in sorted(str(name) for name in names)}


def installed(name: str) -> str:
    """A version; waitline itself may be run from its source tree."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "from source"

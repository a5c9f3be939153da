"""The long session: ``python -m tests.faults --kills 1200 --seed 7``.

From 1,200 kills on it fails, beside for a violated law, if a point was hit too seldom with a grant in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time

from tests.faults.points import POINTS
from tests.faults.session import play
from tests.faults.stage import machine
from tests.faults.tally import Tally

EACH = 40
"""Kills in one round."""


async def rounds(seed: int, kills: int, only: int | None, tally: Tally) -> None:
    with machine() as server:
        number = 0 if only is None else only
        while tally.killed < kills:
            began = time.monotonic()
            await play(
                server, seed, number, min(EACH, kills - tally.killed) if only is None else kills, tally
            )
            print(f"round {number}: {tally.killed} kills, {time.monotonic() - began:.1f} s", flush=True)
            if only is not None:
                return
            number += 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill processes until it is enough, and judge what is left.")
    parser.add_argument("--kills", type=int, default=1000, help="how many, of workers and submitters")
    parser.add_argument("--seed", type=int, default=None, help="of all draws; printed if it is not given")
    parser.add_argument("--round", type=int, default=None, help="play only this one")
    parser.add_argument("--hits", default="", help="of each point before it, as a failure prints them")
    options = parser.parse_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    tally = Tally()
    if options.hits:
        tally.before.update(dict(zip(POINTS, map(int, options.hits.split(",")), strict=True)))
    began = time.monotonic()
    try:
        asyncio.run(rounds(seed, options.kills, options.round, tally))
        status = 0
    except AssertionError as error:
        print(f"VIOLATED: {error}", file=sys.stderr)
        status = 1
    print(*tally.lines(), f"{time.monotonic() - began:.0f} s", sep="\n")
    for point in tally.too_few():
        print(f"TOO FEW with a grant in flight: {point}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())

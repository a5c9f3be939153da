"""One worker process: ``python -m benchmarks.durable.work SUBJECT DSN LOAD NUMBER BOARD WORKERS ROOM``.

It works until it is killed, or the process that started it is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.durable.board import Board
from benchmarks.durable.subjects import made
from benchmarks.durable.subjects.base import Load


def leave_with_parent() -> None:
    """End when the other end of standard input is closed."""
    sys.stdin.buffer.read()
    os._exit(0)


def main(arguments: Sequence[str]) -> None:
    """Work."""
    subject, dsn, load, number, path, workers, room = arguments
    threading.Thread(target=leave_with_parent, daemon=True).start()
    board = Board(Path(path), int(workers), int(room))
    made(subject, dsn, Load(**json.loads(load))).work(
        partial(board.ready, int(number)), partial(board.ran, int(number))
    )


if __name__ == "__main__":
    main(sys.argv[1:])

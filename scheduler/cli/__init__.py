"""The command `waitline`: the only room that reads the environment and wires the others together."""

from __future__ import annotations

import signal
import sys

MISSING = "waitline: the command needs its extra: pip install 'waitline[cli]' (missing: {name})"


def main() -> None:
    """Run the command line; errors end in one line and a status, not in a traceback."""
    try:
        from scheduler.cli import gates, jobs, quotas  # noqa: F401 - they add their commands
        from scheduler.cli.app import interrupt, run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("scheduler", "agent"):
            raise
        sys.exit(MISSING.format(name=error.name))
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(run(sys.argv[1:]))

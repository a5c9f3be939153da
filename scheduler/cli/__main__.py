"""``python -m scheduler.cli``: the command `waitline`."""

from scheduler.cli import main

main()

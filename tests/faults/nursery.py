"""A process that forks others: they need not import anything first, so that killing a thousand is cheap.

It reads roles as JSON lines, says ``started NAME PID`` and ``ended NAME STATUS``, and when its input ends it
kills what is left: no process outlives the test that started it.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import traceback
from typing import NoReturn

from tests.faults.asking import Asking
from tests.faults.roles import Role, play


def child(role: Role) -> NoReturn:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        asyncio.run(Asking(role).run() if role.kind == "caller" else play(role))
        status = 0
    except BaseException:
        print(f"--- {role.name} {role.point}", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


class Nursery:
    def __init__(self) -> None:
        self._children: dict[int, str] = {}
        self._rest = b""

    def tell(self, *words: object) -> None:
        os.write(1, " ".join(map(str, words)).encode() + b"\n")

    def bear(self, line: bytes) -> None:
        role = Role.read(line)
        pid = os.fork()
        if pid == 0:
            child(role)
        self._children[pid] = role.name
        self.tell("started", role.name, pid)

    def bury(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self.tell("ended", self._children.pop(pid), os.waitstatus_to_exitcode(status))

    def run(self) -> None:
        awake, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([0, awake], [], [])
            if awake in ready:
                os.read(awake, 4096)
                self.bury()
            if 0 in ready:
                data = os.read(0, 65536)
                if not data:
                    break
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self.bear(line)
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    Nursery().run()

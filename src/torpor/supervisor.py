"""The small parent process of `torpor up`, where there is no systemd: starts the parts again.

`python -m torpor.supervisor -- COMMAND... -- COMMAND...` runs all of them until one ends with
status 0 or SIGTERM comes, which is passed on; one that fails is started again, ever later. One that
gives up soon behind its first start will do so again, so that ends all. It imports nothing that
could fail or grow.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

from torpor.serverlog import note

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
HEALTHY_S = 10.0
SEPARATOR = "--"
OOM_SCORE = "-900"
"""Of what keeps the VMs (proc_pid_oom_score_adj(5)): as in the systemd units."""


class Part:
    """One of the programs."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self._name = os.path.basename(command[0])  # noqa: PTH119 -- pathlib is larger than all this
        self.process: subprocess.Popen[bytes] | None = None
        self.began_s = 0.0
        self.pause_s = 0.0
        self.again_s = 0.0
        """When it is to be started."""
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        self.began_s = time.monotonic()
        try:
            self.process = subprocess.Popen(self.command)
            note(f"{self._name} is started: process {self.process.pid}")
        except OSError as error:  # no memory for it now, or it is being replaced by a newer one
            self._again(f"cannot be started: {error.strerror}")

    def is_hopeless(self, status: int) -> bool:
        """Whether it ended by itself, and never was of any use."""
        return status > 0 and self.starts == 1 and not self._is_healthy()

    def _is_healthy(self) -> bool:
        return time.monotonic() - self.began_s >= HEALTHY_S

    def failed(self, status: int) -> None:
        """It has ended: plans the next start."""
        self.process = None
        self._again(f"ended with status {status}")

    def _again(self, why: str) -> None:
        doubled = min(max(self.pause_s * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self.pause_s = 0.0 if self._is_healthy() else doubled
        self.again_s = time.monotonic() + self.pause_s
        note(f"{self._name} {why}: again in {self.pause_s} s")


def supervise(commands: list[list[str]]) -> int:
    """Runs the commands; the exit status of the one that ended it."""
    # The parts inherit it; VM processes give themselves the highest. It takes a privilege.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123 -- as above
        score.write(OOM_SCORE)
    parts = [Part(command) for command in commands]
    reads, writes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writes)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    status: int | None = None
    while status is None:
        now_s = time.monotonic()
        for part in parts:
            if part.process is None and now_s >= part.again_s:
                part.start()
        pauses_s = [part.again_s - now_s for part in parts if part.process is None]
        select.select([reads], [], [], max(min(pauses_s, default=3600.0), 0.01))
        if set(_drain(reads)) & {signal.SIGTERM, signal.SIGINT}:
            status = 0
        for part in parts:
            ended = None if part.process is None else part.process.poll()
            if ended is not None and (ended == 0 or part.is_hopeless(ended)):
                status = ended if status is None else status
                part.process = None
            elif ended is not None and status is None:
                part.failed(ended)
    for part in parts:
        if part.process is not None:
            part.process.terminate()
    for part in parts:
        if part.process is not None:
            part.process.wait()
    return status


def _drain(reads: int) -> bytes:
    """The numbers of the signals that came."""
    try:
        return os.read(reads, 4096)
    except BlockingIOError:
        return b""


def split(words: list[str]) -> list[list[str]]:
    """The commands between separators."""
    commands: list[list[str]] = []
    for word in words:
        if word == SEPARATOR:
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


if __name__ == "__main__":
    sys.exit(supervise(split(sys.argv[1:])))

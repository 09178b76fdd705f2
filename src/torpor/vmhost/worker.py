"""One VM process as torpord has it: alive until it is seen dead, one instance after the other."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torpor.controller.vm import Exit, VmListener
from torpor.store import Base
from torpor.vmprocess import Ended, Launched, Ready, Refused, Unlinked, VMProcess

PAGE_BYTES = os.sysconf("SC_PAGESIZE")
TOUCH_S = 10.0
"""How long that may take: a process that does not answer holds up those to be made."""
KERNEL_BYTES = 1 << 20
"""What a VM costs the host's kernel besides its pages, with its process; rounded up."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Where a process rests: ids of the template and of the warm base."""

    template_id: int
    warm_id: int | None

    @classmethod
    def at(cls, template: Base, warm: Base | None) -> "Rest":
        """At a template, with a warm base or without."""
        return cls(template.id, None if warm is None else warm.id)


class Worker:
    """A VM process. `listener` is that of the instance that it is now, if it is one."""

    def __init__(
        self, process: VMProcess, path: Path, child: "subprocess.Popen[bytes] | None", pidfd: int
    ) -> None:
        self.process = process
        self.path = path
        self.pid = process.pid
        self.started_ticks = started_ticks(process.pid)
        self.template: Base | None = None
        self.rest: Rest | None = None
        self.listener: VmListener | None = None
        self.serving = False
        """An instance of its template: it counts as in use."""
        self.shares_template = True
        """False: its template was not unpacked, and what it needs of it is this process's alone."""
        self.is_fresh = False
        """It was prepared, and neither touched nor an instance since."""
        self.rested_cpu_ms = 0
        """Processor time that it had used when it came to rest last: not its next instance's."""
        self._measured_bytes = 0
        self.alive = True
        self.killed = False
        """By torpord: that is how it ends, and no loss."""
        self.on_death: Callable[[Worker], None] = lambda _: None
        self._child = child
        self._pidfd = pidfd
        self._died = asyncio.Event()
        self._result: Ended | None = None
        self._burial: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        loop.add_reader(pidfd, self._dead)
        self._events = loop.create_task(self._hear())

    @classmethod
    def of_launched(cls, launched: Launched) -> Self:
        """A process that was just started."""
        return cls(
            launched.process, launched.path, launched.child, os.pidfd_open(launched.process.pid)
        )

    def private_bytes(self) -> int:
        """Memory that is this process's alone, as the kernel counts it, and the kernel's for it."""
        try:
            resident, shared = Path(f"/proc/{self.pid}/statm").read_text().split()[1:3]
        except (OSError, ValueError):
            return 0
        own = int(resident) - (int(shared) if self.shares_template else 0)
        return own * PAGE_BYTES + KERNEL_BYTES

    def measured(self) -> int:
        """The same; of a process that no instance is in, as it was at the last look."""
        if self.listener is not None or not self._measured_bytes:
            self._measured_bytes = self.private_bytes()
        return self._measured_bytes

    def cpu_time_ms(self) -> int:
        """Processor time that it has used."""
        try:
            return time.clock_gettime_ns(_processor_clock(self.pid)) // 1_000_000
        except OSError:
            return 0

    async def touch(self) -> None:
        """Makes the first wake in it shorter. Where that fails it is of no use any more."""
        self.is_fresh = False
        try:
            async with asyncio.timeout(TOUCH_S):
                await self.process.touch()
        except (Refused, ConnectionError, TimeoutError):
            self.kill()

    def kill(self) -> None:
        """Ends the process. Its listener hears of it when it is dead."""
        self.killed = True
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def dead(self) -> None:
        """Waits until the process is seen dead."""
        await self._died.wait()

    def leave(self) -> None:
        """Lets go of a process, which runs on."""
        self._events.cancel()
        self._forget()
        self.process.close()

    async def _hear(self) -> None:
        while True:
            event = await self.process.events.get()
            if isinstance(event, Ready):
                if self.listener is not None:
                    self.listener.ready()
                continue
            if isinstance(event, Unlinked):
                # The proxy is gone; the next one is given another link.
                continue
            self._result = event
            if event.reason == "lost":
                # Gone, or of no use: either way it must not run on unseen.
                self._signal_death()
            return

    def _signal_death(self) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _dead(self) -> None:
        """The pidfd became readable: the process is dead, and nothing of it runs any more."""
        self.alive = False
        if self._child is not None:
            self._child.poll()
        self._forget()
        self._burial = asyncio.get_running_loop().create_task(self._bury())

    async def _bury(self) -> None:
        # What it said last may still be in its socket.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._events), 1.0)
        self._events.cancel()
        self.process.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)  # noqa: PTH108 -- quick, and pathlib's would be the same call
        self._died.set()
        listener, self.listener = self.listener, None
        self.on_death(self)
        if listener is not None:
            result = exit_of(self._result, killed=self.killed)
            if result.message:
                listener.output(f"torpor: {result.message}\n".encode())
            listener.ended(result)

    def _forget(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def exit_of(ended: Ended | None, *, killed: bool) -> Exit:
    """How a VM ended, from what its process said last."""
    if ended is None or ended.reason == "lost":
        return Exit("signal", signal.SIGKILL) if killed else Exit("lost")
    if ended.reason == "damaged":
        # What is stored of it stays: a backup may have what is missing.
        return Exit("lost", message=ended.message)
    if ended.reason == "out_of_memory":
        return Exit("out-of-memory", os.WTERMSIG(ended.status), ended.message)
    if ended.reason == "exited":
        if os.WIFSIGNALED(ended.status):
            return Exit("signal", os.WTERMSIG(ended.status))
        return Exit("exit", os.WEXITSTATUS(ended.status))
    if ended.reason == "start_failed":
        return Exit("exit", 127 if ended.status == 2 else 126, ended.message)
    return Exit("crash", message=ended.message)


def _processor_clock(pid: int) -> int:
    """The clock of a process's processor time, as clock_getcpuclockid(3) makes it."""
    return (~pid << 3) | 2


def started_ticks(pid: int) -> int:
    """The start time of a process, in clock ticks since the host's start; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0

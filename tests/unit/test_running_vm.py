"""What a running VM says of itself."""

import asyncio
import fcntl
import os
from types import SimpleNamespace
from typing import Any, cast

from torpor.controller.vm import Usage
from torpor.store import Base
from torpor.vmhost.vm import RunningVm
from torpor.vmprocess import Stored

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Worker:
    """A process that has been other instances before."""

    pid, started_ticks = 1, 1
    rested_cpu_ms = 700

    def cpu_time_ms(self) -> int:
        return 1000

    def private_bytes(self) -> int:
        return 4096


class Process:
    """One that stores siblings, of which it says whether they drew random numbers."""

    async def sibling(self, *_: object, **__: object) -> Stored:
        file = os.memfd_create("delta", os.MFD_ALLOW_SEALING)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
        return Stored(descriptor=file, bytes=0, pages={}, next_deadline_ns=None, drew_random=True)


def test_a_sibling_says_that_it_drew_random_numbers() -> None:
    worker = cast("Any", Worker())
    worker.process = Process()

    async def load(_: Base) -> Any:
        return cast("Any", SimpleNamespace(file=SimpleNamespace(number=0))), 0

    never = cast("Any", None)
    vm = RunningVm(worker, "uuid", never, never, never, load)
    base = Base(7, 1, b"", None, b"key", "image", b"", 1, "upper", 0, 0)
    saved = asyncio.run(vm.sibling(base, 1))
    assert saved.drew_random


def test_processor_time_is_not_that_of_the_process_s_former_instances() -> None:
    never = cast("Any", None)
    vm = RunningVm(cast("Any", Worker()), "uuid", never, never, never, never)
    assert asyncio.run(vm.query()) == Usage(rss_bytes=4096, cpu_time_ms=300)


def test_a_process_that_answers_nothing_is_killed_when_the_program_s_time_is_over() -> None:
    class Silent(Worker):
        """Dies of being killed alone."""

        def __init__(self) -> None:
            self.process = self
            self.died = asyncio.Event()

        async def signal(self, number: int) -> None:  # noqa: ARG002
            await asyncio.Event().wait()

        def kill(self) -> None:
            self.died.set()

        async def dead(self) -> None:
            await self.died.wait()

    async def run() -> None:
        never = cast("Any", None)
        vm = RunningVm(cast("Any", Silent()), "uuid", never, never, never, never)
        await asyncio.wait_for(vm.stop(force=False, timeout_s=0.1), 10)

    asyncio.run(run())

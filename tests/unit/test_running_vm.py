"""What a running VM says of itself."""

import asyncio
from typing import Any, cast

from torpor.controller.vm import Usage
from torpor.vmhost.vm import RunningVm


class Worker:
    """A process that has been other instances before."""

    pid, started_ticks = 1, 1
    rested_cpu_ms = 700

    def cpu_time_ms(self) -> int:
        return 1000

    def private_bytes(self) -> int:
        return 4096


def test_processor_time_is_not_that_of_the_process_s_former_instances() -> None:
    never = cast("Any", None)
    vm = RunningVm(cast("Any", Worker()), "uuid", never, never, never, never)
    assert asyncio.run(vm.query()) == Usage(rss_bytes=4096, cpu_time_ms=300)

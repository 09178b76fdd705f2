"""A VM that is stored whole while something is on its way to it."""

import asyncio
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from torpor.controller.errors import BusyError, ItemError
from torpor.vmhost.vm import RunningVm, read_all
from torpor.vmhost.worker import Worker
from torpor.vmprocess import Refused, Stored

UUID = "5f0c9f57-6b0c-4c53-9d38-2f2a5a3b9d11"


class Process:
    """A VM process whose guest has something on its way to it, so many times that it is stopped."""

    def __init__(self, busy: int) -> None:
        self.busy = busy
        self.asked: list[str] = []

    async def run(self) -> None:
        self.asked.append("run")

    async def standby(self, generation: int, *, within_s: float, busy: bool) -> Stored:
        assert within_s > 0
        assert busy
        self.asked.append(f"standby {generation}")
        return self._stored(b"what it differs by")

    async def template(self, uuid: str, generation: int) -> Stored:
        assert uuid == UUID.replace("-", "")
        self.asked.append(f"template {generation}")
        if self.busy > 0:
            self.busy -= 1
            raise Refused("busy", "input is on its way to the guest")
        return self._stored(b"all of it")

    def _stored(self, content: bytes) -> Stored:
        memory = os.memfd_create("stored")
        os.write(memory, content)
        return Stored(
            descriptor=memory,
            bytes=len(content),
            pages={},
            next_deadline_ns=None,
            drew_random=False,
        )


def vm_of(process: Process) -> RunningVm:
    worker = SimpleNamespace(process=process, pid=1, started_ticks=0)

    async def never(*_: Any) -> Any:
        raise AssertionError

    return RunningVm(cast("Worker", worker), UUID, None, None, never, never)


@pytest.mark.parametrize("busy", [0, 1, 5])
def test_it_is_let_go_on_and_tried_again(busy: int) -> None:
    process = Process(busy)
    saved = asyncio.run(vm_of(process).standby(3, busy=True, within_s=60))
    assert (saved.content, saved.template) == (b"all of it", None)
    again = ["standby 3", "template 3", "run"] * busy
    assert process.asked == [*again, "standby 3", "template 3"]


def test_a_template_is_tried_as_often() -> None:
    process = Process(4)
    saved = asyncio.run(vm_of(process).template())
    assert saved.content == b"all of it"
    assert process.asked[:3] == ["template 0", "run", "standby 0"]
    assert process.asked.count("template 0") == 5


def test_what_never_stops_is_left_running() -> None:
    process = Process(1_000_000)
    with pytest.raises(BusyError, match="on its way"):
        asyncio.run(vm_of(process).standby(1, busy=True, within_s=0.05))
    assert process.asked[-1] == "run"


def test_a_file_with_holes_is_refused() -> None:
    memory = os.memfd_create("stored")
    os.ftruncate(memory, 1 << 40)
    with pytest.raises(ItemError, match="holes"):
        read_all(memory)
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(memory)

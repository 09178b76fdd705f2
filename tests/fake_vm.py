"""A stand-in for VM processes, for tests of the controller and the API only.

A machine's "program" is its environment: FAKE_READY=never, FAKE_EXIT=STATUS (ends before it is
ready), FAKE_FAIL=start (cannot be started). Its "memory" is a number that counts its lives, so that
a test can tell a restore from a cold start.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from torpor.controller.errors import Code, ItemError
from torpor.controller.vm import (
    Exit,
    Found,
    Machine,
    State,
    Usage,
    VmListener,
)


@dataclass(eq=False)
class FakeVm:
    """One VM that pretends to run."""

    host: "FakeHost"
    machine: Machine
    listener: VmListener
    memory: dict[str, object]
    pid: int = 0
    started_ticks: int = 0
    alive: bool = True

    async def standby(self) -> bytes:
        await asyncio.sleep(0)
        content = self._content()
        self._gone()
        return content

    async def checkpoint(self) -> bytes:
        await asyncio.sleep(0)
        return self._content()

    async def stop(self, *, force: bool, timeout_s: float) -> None:  # noqa: ARG002
        await asyncio.sleep(0)
        if self.host.stuck and not force:
            return
        self.end(Exit("signal", 9) if force else Exit("exit", 0))

    async def query(self) -> Usage:
        return Usage(rss_bytes=4096, cpu_time_ms=5, rx_bytes=1, tx_bytes=2)

    def end(self, result: Exit) -> None:
        """The VM ends like this."""
        if self.alive:
            self._gone()
            self.listener.ended(result)

    def _gone(self) -> None:
        self.alive = False
        self.host.running.pop(self.machine.instance, None)

    def _content(self) -> bytes:
        return json.dumps(self.memory).encode() + b" " * self.host.padding


@dataclass
class FakeHost:
    """Where FakeVms "run". `stuck`: programs that do not mind SIGTERM."""

    running: dict[str, FakeVm] = field(default_factory=dict)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    stuck: bool = False
    padding: int = 0
    left_over: list[Found] = field(default_factory=list)

    async def run(self, machine: Machine, listener: VmListener) -> FakeVm:
        return self._start(machine, listener, {"lives": 1})

    async def restore(self, machine: Machine, state: State, listener: VmListener) -> FakeVm:
        memory = json.loads(state.delta or state.template or b"{}")
        return self._start(machine, listener, {**memory, "lives": memory["lives"] + 1})

    def _start(self, machine: Machine, listener: VmListener, memory: dict[str, object]) -> FakeVm:
        if machine.env.get("FAKE_FAIL") == "start":
            raise ItemError(Code.FAILED, "the fake cannot start")
        assert machine.instance not in self.running, "an instance runs twice"
        vm = FakeVm(self, machine, listener, memory)
        self.running[machine.instance] = vm
        self.started.set()
        asyncio.get_running_loop().call_soon(self._program, vm)
        return vm

    def _program(self, vm: FakeVm) -> None:
        if not vm.alive or vm.machine.env.get("FAKE_READY") == "never":
            return
        vm.listener.output(f"life {vm.memory['lives']} of {vm.machine.name}\n".encode())
        status = vm.machine.env.get("FAKE_EXIT")
        if status is not None:
            vm.end(Exit("exit", int(status)))
        else:
            vm.listener.ready()

    async def next_start(self, instance: str) -> None:
        """Waits until an instance that does not run does."""
        while instance not in self.running:
            self.started.clear()
            await self.started.wait()

    async def adopt(self, listener: Callable[[str], VmListener | None]) -> list[Found]:
        found = []
        for left in self.left_over:
            wanted = listener(left.instance)
            if wanted is None:
                continue
            assert isinstance(left.process, FakeVm)
            left.process.listener, left.process.host = wanted, self
            self.running[left.instance] = left.process
            found.append(left)
        self.left_over = []
        return found

    async def close(self) -> None:
        return

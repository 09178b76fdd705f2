"""A stand-in for VM processes, for tests of the controller and the API only.

A machine's "program" is its environment: FAKE_READY=never, FAKE_EXIT=STATUS (ends before it is
ready), FAKE_FAIL=start (cannot be started). Its "memory" is a number that counts its lives, so that
a test can tell a restore from a cold start.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from torpor.controller.errors import Code, ItemError
from torpor.controller.vm import (
    BaseFinder,
    BaseReader,
    Exit,
    Found,
    Identity,
    Machine,
    Saved,
    State,
    Usage,
    VmListener,
    WarmBases,
)
from torpor.store import Base, Content


@dataclass(eq=False)
class FakeVm:
    """One VM that pretends to run."""

    host: "FakeHost"
    instance: str
    name: str
    listener: VmListener
    memory: dict[str, object]
    env: dict[str, str]
    template_base: Base | None = None
    near: socket.socket | None = None
    """Its end of the link, on which it says nothing."""
    pid: int = 0
    started_ticks: int = 0
    alive: bool = True
    stopped: bool = False

    async def go_on(self) -> None:
        await asyncio.sleep(0)
        self.stopped = False
        self.talk()

    def talk(self) -> None:
        if not self.memory.get("talked"):
            self.memory["talked"] = True
            self.listener.output(f"life {self.memory['lives']} of {self.name}\n".encode())

    async def template(self) -> Saved:
        await asyncio.sleep(0)
        return Saved(self._content(), drew_random="FAKE_DREW_RANDOM" in self.env)

    async def sibling(self, template: Base, generation: int) -> Saved:  # noqa: ARG002
        await asyncio.sleep(0)
        return Saved(self._content(), template, drew_random="FAKE_DREW_RANDOM" in self.env)

    async def standby(self, generation: int, *, busy: bool, within_s: float) -> Saved:  # noqa: ARG002
        await asyncio.sleep(0)
        self.stopped = True
        if self.host.standby_may_end is not None:
            await self.host.standby_may_end.wait()
        return Saved(
            self._content(), self.template_base, next_deadline_ns=self.host.next_deadline_ns
        )

    async def has_changed(self, generation: int) -> bool:  # noqa: ARG002
        return True

    async def checkpoint(self, generation: int, *, busy: bool, within_s: float) -> Saved:  # noqa: ARG002
        await asyncio.sleep(0)
        return Saved(self._content(), self.template_base)

    async def release(self) -> None:
        self._gone()
        if self.host.release_may_end is not None:
            self.host.releasing.set()
            await self.host.release_may_end.wait()

    async def stop(self, *, force: bool, timeout_s: float) -> None:  # noqa: ARG002
        await asyncio.sleep(0)
        if self.host.stuck and not force:
            return
        self.end(Exit("signal", 9) if force else Exit("exit", 0))

    async def query(self) -> Usage:
        return Usage(rss_bytes=4096, cpu_time_ms=5)

    async def link(self, end: socket.socket) -> None:
        self.unlink()
        self.near = end

    def unlink(self) -> None:
        """Closes its end of the link."""
        if self.near is not None:
            self.near.close()
            self.near = None

    def end(self, result: Exit) -> None:
        """The VM ends like this."""
        if self.alive:
            self._gone()
            self.listener.ended(result)

    def _gone(self) -> None:
        self.alive = False
        self.unlink()
        if self.host.running.get(self.instance) is self:
            del self.host.running[self.instance]

    def _content(self) -> Content:
        memory = {**self.memory, "of": self.instance, "env": self.env}
        return Content(json.dumps(memory).encode() + b" " * self.host.padding)


@dataclass
class FakeHost:
    """Where FakeVms "run". `stuck`: programs that do not mind SIGTERM."""

    running: dict[str, FakeVm] = field(default_factory=dict)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    stuck: bool = False
    restores_fail: bool = False
    padding: int = 0
    standby_may_end: asyncio.Event | None = None
    restore_may_end: asyncio.Event | None = None
    release_may_end: asyncio.Event | None = None
    releasing: asyncio.Event = field(default_factory=asyncio.Event)
    """A VM waits for `release_may_end`."""
    restores: int = 0
    next_deadline_ns: int | None = None
    """Of the timers of every VM that is put down."""
    left_over: list[Found] = field(default_factory=list)

    def begin(self, read: BaseReader, warm: WarmBases, find: BaseFinder) -> None:
        self._read, self._warm, self._find = read, warm, find

    def start(self, on_shortage: Callable[[int], None]) -> None:  # noqa: ARG002
        return

    async def boot(
        self, machine: Machine, listener: VmListener, link: socket.socket | None
    ) -> FakeVm:
        if machine.env.get("FAKE_FAIL") == "start":
            if link is not None:
                link.close()
            raise ItemError(Code.FAILED, "the fake cannot start")
        memory: dict[str, object] = {"lives": 1}
        env = dict(machine.env)
        vm = self._start(
            FakeVm(self, machine.instance, machine.name, listener, memory, env, near=link)
        )
        asyncio.get_running_loop().call_soon(self._program, vm)
        return vm

    async def restore(
        self,
        who: Identity,
        state: State,
        listener: VmListener,
        link: socket.socket | None,
        sent: Callable[[], None] | None = None,
    ) -> FakeVm:
        self.restores += 1
        if sent is not None:
            sent()
        if self.restores_fail:
            if link is not None:
                link.close()
            raise ItemError(Code.FAILED, "the state could not be restored")
        if self.restore_may_end is not None:
            await self.restore_may_end.wait()
        memory = json.loads((state.delta or await self._read(state.template)).read())
        memory["lives"] += 1
        env = memory.pop("env")
        memory["talked"] = False
        vm = FakeVm(self, who.instance, who.hostname, listener, memory, env, state.template, link)
        asyncio.get_running_loop().call_soon(vm.talk)
        return self._start(vm)

    def _start(self, vm: FakeVm) -> FakeVm:
        assert vm.instance not in self.running, "an instance runs twice"
        self.running[vm.instance] = vm
        self.started.set()
        return vm

    def _program(self, vm: FakeVm) -> None:
        if not vm.alive or vm.env.get("FAKE_READY") == "never":
            return
        status = vm.env.get("FAKE_EXIT")
        if status is not None:
            vm.end(Exit("exit", int(status)))
        else:
            vm.stopped = True
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

    async def learn(self, template: Base, deltas: list[Content]) -> Content:  # noqa: ARG002
        raise ItemError(Code.FAILED, "the fake learns nothing")

    def in_use(self) -> set[int]:
        return set()

    async def close(self) -> None:
        for vm in self.running.values():
            vm.unlink()

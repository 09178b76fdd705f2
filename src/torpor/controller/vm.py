"""The one way from the controller to VM processes.

The controller sees a `VmHost` and nothing else of KVM, sockets and processes, so that its logic
runs in tests without them.
"""

import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct

from torpor.controller.errors import Code, ItemError
from torpor.store import Base, Content


class Machine(Struct, frozen=True):
    """What a VM is to be that starts cold."""

    instance: str
    """Uuid."""
    name: str
    owner: str
    """Uuid; a process is never used for two owners."""
    hostname: str
    memory_mb: int
    image: Path
    """The EROFS file of the root file system."""
    image_digest: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    workdir: str
    user: str
    ports: tuple[int, ...] = ()
    """Its program is ready when it listens at one of these; at any if there are none."""
    seed: bytes | None = None
    """What its random numbers begin with in place of fresh ones: 32 bytes. Such a VM is stored when
    it is ready, and does not go on itself."""


class Identity(Struct, frozen=True):
    """Who a VM becomes that is restored."""

    instance: str
    hostname: str
    generation: int
    """Of the state; 0 for a clone of a template."""


class State(Struct, frozen=True):
    """A saved state: a template, and what differs from it (None for the template's own)."""

    template: Base
    delta: Content | None
    warm: Base | None = None
    """The warm base that the delta is coded against."""
    origin: str = ""
    """UUID/GENERATION that the delta was stored as, where that was another instance."""
    resumes: bool = False
    """It is the instance's own, which goes on with the connections that it had."""


class Saved(Struct, frozen=True):
    """A state that a VM has just given.

    Without a template it is a whole one: the file of a template that only this instance has.
    """

    content: Content
    template: Base | None = None
    warm: Base | None = None
    next_deadline_ns: int | None = None
    drew_random: bool = False
    """Random numbers may lie in it that the program has drawn for later (`torpor.chance`)."""


class Exit(Struct, frozen=True):
    """How a VM ended."""

    kind: Literal["exit", "signal", "out-of-memory", "crash", "lost"]
    """The program's exit, a signal that killed it, no memory, a kernel panic, or unknown."""
    status: int = 0
    """Exit status or signal number."""
    message: str = ""


class Usage(Struct, frozen=True):
    """What a running VM uses now."""

    rss_bytes: int
    cpu_time_ms: int
    """Since it was started or woken last."""


class VmListener(Protocol):
    """What a VM process tells. Called in the event loop, in the order in which it happened."""

    def ready(self) -> None:
        """The program listens, or said that it is ready; its VM is stopped until `go_on`."""

    def output(self, data: bytes) -> None:
        """Bytes of standard output and standard error."""

    def ended(self, result: Exit) -> None:
        """The last call: the VM and its process are gone."""


class VmProcess(Protocol):
    """One VM that runs."""

    pid: int
    started_ticks: int
    """The process's start time of /proc/PID/stat: a pid alone may have been given out again."""

    async def go_on(self) -> None:
        """Lets a VM that is stopped run on: at readiness, or after `standby`."""

    async def template(self) -> Saved:
        """The state of a VM that was started cold and is stopped, as a template."""

    async def sibling(self, template: Base, generation: int) -> Saved:
        """The same as what differs from a sibling's template. Raises ItemError, StoreError."""

    async def standby(self, generation: int, *, busy: bool, within_s: float) -> Saved:
        """Stops the VM and gives its state, numbered `generation`; `go_on` takes it back.

        With `busy` also a VM that does something. On failure (ItemError) the VM runs on.
        """

    async def has_changed(self, generation: int) -> bool:
        """Whether the VM may have done anything since that state of it was stored here."""

    async def checkpoint(self, generation: int, *, busy: bool, within_s: float) -> Saved:
        """Gives the state while the VM runs on; with `busy` also of one that does something."""

    async def release(self) -> None:
        """The state is committed, or not wanted: the process is free. `ended` is not called.

        Its end of the link is closed when this returns.
        """

    async def stop(self, *, force: bool, timeout_s: float) -> None:
        """Ends it: SIGTERM to its program and, after `timeout_s` or with `force`, the process.

        It is seen dead when this returns.
        """

    async def query(self) -> Usage:
        """What it uses."""

    async def link(self, end: socket.socket) -> None:
        """Gives a running VM another link, in place of one whose far end is gone."""


class Found(Struct, frozen=True):
    """A VM process that an earlier torpord left running."""

    instance: str
    generation: int
    """Of the state that it was restored from."""
    process: VmProcess
    template: Base | None = None
    is_stopped: bool = False
    """It was about to be put down, or had just become ready."""
    stopped_for: int | None = None
    """The generation that its state was given as, if it was."""
    is_seeded: bool = False
    """It would draw the random numbers that its siblings draw: it must not run on."""


BaseReader = Callable[[Base], Awaitable[Content]]
"""The file of a template or warm base, its seal checked. Raises StoreError."""
WarmBases = Callable[[Base], Base | None]
"""The warm base at which VM processes of a template rest."""


BaseFinder = Callable[[bytes], Base | None]
"""A template or warm base by the digest of its file."""


class VmHost(Protocol):
    """Where VMs run.

    `link` is the VM's end of the link that its output and streams travel over; the host closes it.
    """

    def begin(self, read: BaseReader, warm: WarmBases, find: BaseFinder) -> None:
        """Once, before all else: where bases come from."""

    def start(self, on_shortage: Callable[[int], None]) -> None:
        """Once, after `adopt`: begins what goes on in the background.

        `on_shortage` is called, now and again, while VMs have more memory than they may: with how
        many idle instances are to go to standby.
        """

    async def boot(
        self, machine: Machine, listener: VmListener, link: socket.socket | None
    ) -> VmProcess:
        """Starts a VM cold; `ready` comes when it is. Raises ItemError if it cannot."""

    async def restore(
        self,
        who: Identity,
        state: State,
        listener: VmListener,
        link: socket.socket | None,
        sent: Callable[[], None] | None = None,
    ) -> VmProcess:
        """Starts a VM from a saved state; it runs. Raises ItemError if it cannot.

        `sent` is called at most once, when a VM is about to run: from then on its link's far end
        may be written to.
        """

    async def adopt(self, listener: Callable[[str], VmListener | None]) -> list[Found]:
        """All VM processes that an earlier torpord left, now reporting to `listener(instance)`.

        Where that gives None the process is killed, and seen dead, before this returns.
        """

    async def learn(self, template: Base, deltas: list[Content]) -> Content:
        """The file of a warm base from the deltas of siblings. Raises ItemError."""

    def in_use(self) -> set[int]:
        """Ids of the bases that VM processes have now."""

    async def close(self) -> None:
        """Lets go of the processes that run VMs, which run on, and ends the others."""


class NoVmHost:
    """Stands in where VM processes cannot be had: everything says so, and nothing pretends."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def begin(self, read: BaseReader, warm: WarmBases, find: BaseFinder) -> None:  # noqa: ARG002
        return

    def start(self, on_shortage: Callable[[int], None]) -> None:  # noqa: ARG002
        return

    async def boot(
        self,
        machine: Machine,  # noqa: ARG002
        listener: VmListener,  # noqa: ARG002
        link: socket.socket | None,  # noqa: ARG002
    ) -> VmProcess:
        raise ItemError(Code.NOT_SUPPORTED, self.reason)

    async def restore(
        self,
        who: Identity,  # noqa: ARG002
        state: State,  # noqa: ARG002
        listener: VmListener,  # noqa: ARG002
        link: socket.socket | None,  # noqa: ARG002
        sent: Callable[[], None] | None = None,  # noqa: ARG002
    ) -> VmProcess:
        raise ItemError(Code.NOT_SUPPORTED, self.reason)

    async def adopt(self, listener: Callable[[str], VmListener | None]) -> list[Found]:  # noqa: ARG002
        return []

    async def learn(self, template: Base, deltas: list[Content]) -> Content:  # noqa: ARG002
        raise ItemError(Code.NOT_SUPPORTED, self.reason)

    def in_use(self) -> set[int]:
        return set()

    async def close(self) -> None:
        return

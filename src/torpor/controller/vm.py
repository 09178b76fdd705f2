"""The one way from the controller to VM processes.

The controller sees a `VmHost` and nothing else of KVM, sockets and processes, so that its logic
runs in tests without them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torpor.controller.errors import Code, ItemError


@dataclass(frozen=True, slots=True)
class Machine:
    """What a VM is to be: the same for a cold start and a restore."""

    instance: str
    """Uuid."""
    name: str
    owner: str
    """Uuid; a process is never used for two owners."""
    hostname: str
    memory_mb: int
    image: Path
    """The EROFS file of the root file system."""
    argv: tuple[str, ...]
    env: Mapping[str, str]
    workdir: str
    user: str
    ports: tuple[int, ...] = ()
    """Destination ports of its services: it is ready once it listens on one."""


@dataclass(frozen=True, slots=True)
class State:
    """A saved state: the template's, if there is one, and what differs from it."""

    template: bytes | None
    delta: bytes | None
    generation: int


@dataclass(frozen=True, slots=True)
class Exit:
    """How a VM ended."""

    kind: Literal["exit", "signal", "out-of-memory", "crash", "lost"]
    """The program's exit, a signal that killed it, no memory, a kernel panic, or unknown."""
    status: int = 0
    """Exit status or signal number."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a running VM uses now."""

    rss_bytes: int
    cpu_time_ms: int
    rx_bytes: int = 0
    tx_bytes: int = 0


class VmListener(Protocol):
    """What a VM process tells. Called in the event loop, in the order in which it happened."""

    def ready(self) -> None:
        """The program listens, or said that it is ready."""

    def output(self, data: bytes) -> None:
        """Bytes of standard output and standard error."""

    def ended(self, result: Exit) -> None:
        """The last call: the VM and its process are gone."""


class VmProcess(Protocol):
    """One VM that runs."""

    pid: int
    started_ticks: int
    """The process's start time of /proc/PID/stat: a pid alone may have been given out again."""

    async def standby(self) -> bytes:
        """Stops the VM at a consistent point and gives its state; the process is free again.

        `ended` is not called. On failure the VM runs on.
        """

    async def checkpoint(self) -> bytes:
        """Gives the state while the VM runs on."""

    async def stop(self, *, force: bool, timeout_s: float) -> None:
        """Ends it: SIGTERM to its program and, after `timeout_s` or with `force`, the process."""

    async def query(self) -> Usage:
        """What it uses."""


@dataclass(frozen=True, slots=True)
class Found:
    """A VM process that an earlier torpord left running."""

    instance: str
    generation: int
    process: VmProcess


class VmHost(Protocol):
    """Where VMs run."""

    async def run(self, machine: Machine, listener: VmListener) -> VmProcess:
        """Starts a VM cold. Raises ItemError if it cannot."""

    async def restore(self, machine: Machine, state: State, listener: VmListener) -> VmProcess:
        """Starts a VM from a saved state. Raises ItemError if it cannot."""

    async def adopt(self, listener: Callable[[str], VmListener | None]) -> list[Found]:
        """All VM processes that an earlier torpord left, now reporting to `listener(instance)`.

        Where that gives None the process is killed, and seen dead, before this returns.
        """

    async def close(self) -> None:
        """Lets go of the processes, which run on."""


class NoVmHost:
    """Stands in where VM processes cannot be had: everything says so, and nothing pretends."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    async def run(self, machine: Machine, listener: VmListener) -> VmProcess:  # noqa: ARG002
        raise ItemError(Code.NOT_SUPPORTED, self.reason)

    async def restore(
        self,
        machine: Machine,  # noqa: ARG002
        state: State,  # noqa: ARG002
        listener: VmListener,  # noqa: ARG002
    ) -> VmProcess:
        raise ItemError(Code.NOT_SUPPORTED, self.reason)

    async def adopt(self, listener: Callable[[str], VmListener | None]) -> list[Found]:  # noqa: ARG002
        return []

    async def close(self) -> None:
        return

"""The links between VMs and the proxy, as the lifecycle sees them.

A link is a socket pair: one end for the VM process, the far end for the proxy. It belongs to an
instance at a generation (docs/proxy-socket.md).
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

from torpor.controller.model import ScaleToZero

Why = Literal["stopped", "deleted", "lost"]


class Egress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where guests' own connections may go, by the rules of docs/network.md."""

    scope: Literal["none", "public", "private"] = "public"
    """Where no entry says otherwise."""
    allow: tuple[str, ...] = ()
    """Addresses and networks (CIDR). A single address is allowed whatever it is."""
    deny: tuple[str, ...] = ()


PUBLIC = Egress()


class Traffic(msgspec.Struct, frozen=True):
    """What went over a link since it was attached."""

    requests: int = 0
    """Requests and connections of clients."""
    rx_bytes: int = 0
    """From the guest."""
    tx_bytes: int = 0


NO_TRAFFIC = Traffic()


class Waiting(msgspec.Struct, frozen=True):
    """Requests and connections that wait at the proxy for one of a name, or for an instance."""

    requests: int
    host: str | None = None
    instance: str | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """What the proxy is told of a VM that runs."""

    instance: str
    name: str
    generation: int
    link: int
    """Tells this link from others of the generation: when it was made, by CLOCK_MONOTONIC in ns."""
    group: str | None
    """Uuid of its service group."""
    resumed: bool
    """It goes on where it was put down, with the connections that it had."""
    policy: ScaleToZero
    requests_max: int | None
    """How many requests and connections it takes; None for any number."""


class Links(Protocol):
    """The way to the proxy. Nothing here waits for it but `drain`, `park` and `listen`."""

    def connected(self) -> bool:
        """Whether there is a proxy."""

    def public_ports(self) -> dict[str, int]:
        """What clients see in place of 80 and 443."""

    def pair(self) -> tuple[socket.socket, socket.socket] | None:
        """The VM's end and the far end; None where there is no proxy to take it."""

    def attach(self, what: Attachment, far: socket.socket) -> None:
        """Hands the far end over and closes it here."""

    def join(self, instance: str, generation: int, group: str) -> None:
        """The instance belongs to another group, of which the proxy was told."""

    def allow(self, instance: str, generation: int, requests_max: int | None) -> None:
        """It takes so many requests and connections on this link, or any number."""

    def detach(self, instance: str, generation: int, why: Why, *, parked: bool) -> None:
        """The VM is gone; with `parked` its connections wait for the next attach."""

    async def drain(self, instance: str, generation: int, drain_ms: int) -> None:
        """Has the proxy begin nothing new, and waits for what is in flight, so long.

        All that is under way goes on; `go_on` takes it back.
        """

    async def park(self, instance: str, generation: int, drain_ms: int) -> None:
        """Has the proxy send nothing more on a link, after waiting for requests in flight."""

    def go_on(self, instance: str, generation: int) -> None:
        """Takes that back."""

    async def listen(self, port: int, *, alone: bool) -> None:
        """Has the proxy listen on a port. Raises ItemError if it is occupied.

        With `alone` whatever comes there is for the one group that has it.
        """

    def close_port(self, port: int) -> None:
        """Has the proxy listen on a port no more. Connections that there are go on."""

    def group(self, document: dict[str, Any]) -> None:
        """Says what a service group is now."""

    def forget(self, hosts: Sequence[str]) -> None:
        """Has the proxy ask again what these host names lead to."""

    def relieve(self, instances: int) -> None:
        """So many instances that are idle are to go to standby without their cool-down."""

    async def stats(self, after: str | None) -> dict[str, Any] | None:
        """A page of the proxy's counters, that behind an instance; None where there is no proxy."""

    async def waiting(self) -> list[Waiting]:
        """Who waits at the proxy. Raises TimeoutError or OSError where it does not say."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A link."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


class NoLinks:
    """Where there is no proxy: VMs run, and nobody reads what they say."""

    def connected(self) -> bool:
        return False

    def public_ports(self) -> dict[str, int]:
        return {}

    def pair(self) -> None:
        return None

    def attach(self, what: Attachment, far: socket.socket) -> None:  # noqa: ARG002
        far.close()

    def join(self, instance: str, generation: int, group: str) -> None:  # noqa: ARG002
        return

    def allow(self, instance: str, generation: int, requests_max: int | None) -> None:  # noqa: ARG002
        return

    def detach(self, instance: str, generation: int, why: Why, *, parked: bool) -> None:  # noqa: ARG002
        return

    async def drain(self, instance: str, generation: int, drain_ms: int) -> None:  # noqa: ARG002
        return

    async def park(self, instance: str, generation: int, drain_ms: int) -> None:  # noqa: ARG002
        return

    def go_on(self, instance: str, generation: int) -> None:  # noqa: ARG002
        return

    async def listen(self, port: int, *, alone: bool) -> None:  # noqa: ARG002
        return

    def close_port(self, port: int) -> None:  # noqa: ARG002
        return

    def group(self, document: dict[str, Any]) -> None:  # noqa: ARG002
        return

    def forget(self, hosts: Sequence[str]) -> None:  # noqa: ARG002
        return

    def relieve(self, instances: int) -> None:  # noqa: ARG002
        return

    async def stats(self, after: str | None) -> dict[str, Any] | None:  # noqa: ARG002
        return None

    async def waiting(self) -> list[Waiting]:
        return []

"""Rows as the layers above see them: plain values, no SQLite."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

Kind = Literal["instance", "template", "checkpoint"]
State = Literal[
    "stopped",
    "starting",
    "running",
    "draining",
    "stopping",
    "standby",
    "template",
    "checkpoint",
    "deleted",
]


class ServiceRow(Struct, frozen=True):
    """A service group."""

    id: int
    uuid: str
    owner_id: int
    name: str
    revision: int
    created_ms: int
    domains: tuple[str, ...]
    document: bytes
    kill_ms: int | None = None
    """When it is deleted by itself, if it has no instances then."""


class PortClaim(Struct, frozen=True):
    """A port other than 80 and 443 that a service group has."""

    port: int
    alone: bool
    """No other group may have it: clients of it name no host."""

    @property
    def host(self) -> str:
        """What stands for the port among the host names of the group that has it alone."""
        return f":{self.port}"


class NewService(Struct, frozen=True):
    """What is to be recorded of a new service group."""

    uuid: str
    name: str
    created_ms: int
    domains: tuple[str, ...]
    ports: int
    """How many ports it has, for the quota."""
    document: bytes
    claims: tuple[PortClaim, ...] = ()
    kill_ms: int | None = None
    ephemeral: bool = False
    """It is deleted by itself when it has no instances any more."""

    def recorded(self, service_id: int, owner_id: int) -> ServiceRow:
        """Its row, just after it was recorded."""
        return ServiceRow(
            service_id,
            self.uuid,
            owner_id,
            self.name,
            1,
            self.created_ms,
            self.domains,
            self.document,
            self.kill_ms,
        )


class NewInstance(Struct, frozen=True):
    """What is to be recorded of a new instance, template or checkpoint."""

    uuid: str
    name: str
    state: State
    memory_mb: int
    vcpus: int
    created_ms: int
    config: bytes
    """What was asked for, as JSON."""
    facts: bytes = b"{}"
    """What became of it, as JSON."""
    tags: tuple[str, ...] = ()
    service_id: int | None = None
    service: NewService | None = None
    """A service group that is recorded with it; several new instances can have the same."""
    kind: Kind = "instance"
    kill_ms: int | None = None
    """When it is deleted by itself."""


class InstanceRow(Struct, frozen=True):
    """An instance, template or checkpoint as it was when it was read."""

    id: int
    uuid: str
    owner_id: int
    kind: Kind
    name: str
    state: State
    revision: int
    """Counts changes; an update is refused if it is made from an older one."""
    generation: int
    """Number of the last committed snapshot, 0 before the first."""
    memory_mb: int
    vcpus: int
    service_id: int | None
    created_ms: int
    tags: tuple[str, ...]
    config: bytes
    facts: bytes
    kill_ms: int | None
    """When it is deleted by itself, unless it changes before."""


class Total(Struct, frozen=True):
    """How much there is of one kind in one state."""

    kind: Kind
    state: State
    instances: int
    memory_mb: int
    vcpus: int


class Base(Struct, frozen=True):
    """A template, or a warm base of one: what snapshots are differences to."""

    id: int
    owner_id: int
    digest: bytes
    """Of its file (torpor.snapshot_format)."""
    template_id: int | None
    """Of a warm base: its template."""
    key: bytes | None
    """Of a template that serves a configuration: the digest of that."""
    image: str
    """Digest of the image whose programs are in it."""
    mac: bytes
    size_bytes: int
    tier: str
    created_ms: int
    used_ms: int


class NewBase(Struct, frozen=True):
    """What is to be recorded of a new template or warm base."""

    owner_id: int
    image: str
    mac: bytes
    created_ms: int
    template_id: int | None = None
    key: bytes | None = None
    family: bytes | None = None
    """Of a template that states of other environments may be differences to."""


class Snapshot(Struct, frozen=True):
    """A committed state of an instance, without its content."""

    instance_id: int
    generation: int
    created_ms: int
    template: "Base | None"
    """What it is a difference to; None if it stands alone."""
    warm: "Base | None"
    """The warm base that it is coded against besides."""
    origin: str
    """UUID/GENERATION that it was stored as, where that was another instance; else empty."""
    mac: bytes
    digest: bytes
    size_bytes: int
    tier: str | None
    """None if it is inline in the database."""


class Owner(Struct, frozen=True):
    """A user of the server, to whom things belong."""

    id: int
    uuid: str
    name: str
    quotas: Mapping[str, int] = field(default_factory=dict)


class Token(Struct, frozen=True):
    """An API token, without the token."""

    uuid: str
    owner_id: int
    name: str
    scopes: tuple[str, ...]
    created_ms: int
    expires_ms: int | None

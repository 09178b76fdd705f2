"""Rows as the layers above see them: plain values, no SQLite."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True, slots=True)
class NewInstance:
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
    kind: Kind = "instance"


@dataclass(frozen=True, slots=True)
class InstanceRow:
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


@dataclass(frozen=True, slots=True)
class Total:
    """How much there is of one kind in one state."""

    kind: Kind
    state: State
    instances: int
    memory_mb: int
    vcpus: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A committed state of an instance, without its content."""

    instance_id: int
    generation: int
    created_ms: int
    base: str
    """Digest of what it is a difference to; empty if it stands alone."""
    mac: bytes
    digest: bytes
    size_bytes: int
    tier: str | None
    """None if it is inline in the database."""


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A service group."""

    id: int
    uuid: str
    owner_id: int
    name: str
    revision: int
    created_ms: int
    domains: tuple[str, ...]
    document: bytes


@dataclass(frozen=True, slots=True)
class NewService:
    """What is to be recorded of a new service group."""

    uuid: str
    name: str
    created_ms: int
    domains: tuple[str, ...]
    ports: int
    """How many ports it has, for the quota."""
    document: bytes


@dataclass(frozen=True, slots=True)
class Owner:
    """A user of the server, to whom things belong."""

    id: int
    uuid: str
    name: str
    quotas: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Token:
    """An API token, without the token."""

    uuid: str
    owner_id: int
    name: str
    scopes: tuple[str, ...]
    created_ms: int
    expires_ms: int | None

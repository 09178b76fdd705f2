"""What is kept of an instance beyond the store's columns: its configuration, and what became of it.

Both are JSON documents in the store. A member that has its default is not written.
"""

from bisect import bisect_left
from enum import IntFlag
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from torpor.controller.events import now_ms
from torpor.store import InstanceRow, State

RestartPolicy = Literal["never", "always", "on-failure"]
Policy = Literal["off", "on", "idle"]
Handler = Literal["tls", "http", "redirect"]
Feature = Literal["delete-on-stop", "nested-virt"]


class Model(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A document of the store; members that a newer version wrote are passed over."""


class ScaleToZero(Model, frozen=True, forbid_unknown_fields=True):
    """When an instance goes to standby by itself."""

    policy: Policy = "off"
    stateful: bool = False
    cooldown_time_ms: int = 1000
    notify_time_ms: int = 0
    wake_on_timer: bool = False
    """Its program's next timer wakes it as well."""


class Service(Model, frozen=True, forbid_unknown_fields=True):
    """A port of the proxy and where it leads in the instance."""

    port: int
    destination_port: int | None = None
    protocol: Literal["tcp", "udp"] = "tcp"
    ip: str | None = None
    handlers: tuple[Handler, ...] | None = None
    """None for those that are usual at the port; without any, bytes are passed as they come."""
    tls_passthrough: bool = False
    """Those bytes are TLS, and its server name says whose: others may have the port as well."""
    retry_idempotent: bool = False
    """Idempotent HTTP requests without a body that got no answer are sent once more."""


class Autokill(Model, frozen=True, forbid_unknown_fields=True):
    """When something is deleted by itself; 0 is never."""

    time_ms: int = 0
    num_requests: int = 0


class Config(Model, frozen=True):
    """What was asked for."""

    image: str = ""
    image_digest: str = ""
    """What the name meant when it was asked for; a tag that moves later changes nothing."""
    memory_mb: int = 128
    vcpus: int = 1
    args: tuple[str, ...] | None = None
    """None for the image's own command."""
    env: dict[str, str] = {}
    restart_policy: RestartPolicy = "never"
    scale_to_zero: ScaleToZero | None = None
    features: tuple[Feature, ...] = ()
    annotations: dict[str, str] = {}
    hostname: str = ""
    delete_lock: bool = False
    autokill: Autokill | None = None
    sched_priority: Literal["normal", "medium", "high"] = "normal"
    template: str = ""
    """Uuid of the template whose memory the instance begins with."""
    private_ip: str = ""


class Lineage(Model, frozen=True):
    """A checkpoint that a state descends from."""

    uuid: str
    name: str
    created_ms: int


class PendingUpdate(Model, frozen=True):
    """A change that waits until the instance stops."""

    prop: str
    op: str
    value: Any = None
    image_digest: str = ""
    """What an image's name meant when it was asked for."""
    status: Literal["pending", "failed"] = "pending"
    error: str = ""


class Facts(Model, frozen=True):
    """What became of it. Times are milliseconds since 1970, 0 for never."""

    start_count: int = 0
    restart_count: int = 0
    started_ms: int = 0
    stopped_ms: int = 0
    boot_time_us: int = 0
    stop_reason: int | None = None
    stop_code: int | None = None
    exit_code: int | None = None
    history: tuple[Lineage, ...] = ()
    """Newest first."""
    updates: tuple[PendingUpdate, ...] = ()
    used_ms: int = 0
    """When a template or checkpoint was last cloned."""
    requests: int = 0
    """Requests and connections that it was sent until it stopped or slept last."""
    rx_bytes: int = 0
    """That its guest was sent so far."""
    tx_bytes: int = 0
    wakeups: tuple[int, ...] = ()
    """How many took at most 1, 2, 4 ... ms (WAKEUP_BUCKETS_MS), and more; zeros at the end are left
    out.
    """
    wakeups_us: int = 0
    """All of them together."""


class ServiceConfig(Model, frozen=True):
    """What was asked for of a service group. Its domains are columns of the store."""

    services: tuple[Service, ...] = ()
    persistent: bool = False
    soft_limit: int = 1
    hard_limit: int = 65535
    autokill: Autokill | None = None


class StopReason(IntFlag):
    """Who had a part in an instance's end."""

    KERNEL = 1
    APPLICATION = 2
    PLATFORM = 4
    USER = 8
    FORCED = 16
    SCALE_TO_ZERO = 32


STOPPED_BY_USER = 15
KILLED_FOR_USER = 13
FORCED_BY_USER = 28
SCALED_TO_ZERO = 39
APPLICATION_EXIT = 3
CRASH = 1
LOST = 5
"""The VM process was gone when torpord came back: kernel and platform, and no word of why."""
NO_IMAGE = (4, 1)
"""Stop reason and code of an instance whose image is not there."""
OUT_OF_MEMORY = 0x000C7F04
WAKEUP_BUCKETS_MS = tuple(1 << power for power in range(13))

_config = msgspec.json.Decoder(Config)
_facts = msgspec.json.Decoder(Facts)
_service = msgspec.json.Decoder(ServiceConfig)
encode = msgspec.json.Encoder().encode


def config_of(document: bytes) -> Config:
    """Reads an instance's configuration."""
    return _config.decode(document)


def with_documents(row: InstanceRow, config: Config, facts: Facts, state: State) -> InstanceRow:
    """The row with these documents, and the columns that repeat something of them."""
    return replace(
        row,
        state=state,
        memory_mb=config.memory_mb,
        vcpus=config.vcpus,
        config=encode(config),
        facts=encode(facts),
        kill_ms=kill_ms_of(config, facts, state),
    )


def kill_ms_of(config: Config, facts: Facts, state: State) -> int | None:
    """When something is deleted by itself.

    An instance after its stop, or when it has had as many requests as it may; templates and
    checkpoints after they were used last.
    """
    since_ms = facts.used_ms if state in ("template", "checkpoint") else 0
    if state == "stopped":
        since_ms = facts.stopped_ms
    if state in ("stopped", "standby") and requests_left(config, facts) == 0:
        return facts.stopped_ms
    if not since_ms or config.delete_lock:
        return None
    if state == "stopped" and "delete-on-stop" in config.features:
        return since_ms
    return (
        since_ms + config.autokill.time_ms if config.autokill and config.autokill.time_ms else None
    )


def requests_left(config: Config, facts: Facts) -> int | None:
    """How many requests and connections an instance takes yet, if not any number."""
    if config.autokill is None or not config.autokill.num_requests or config.delete_lock:
        return None
    return max(config.autokill.num_requests - facts.requests, 0)


def woken(facts: Facts, took_s: float) -> Facts:
    """What is recorded when an instance was woken."""
    bucket = bisect_left(WAKEUP_BUCKETS_MS, took_s * 1000)
    counts = [*facts.wakeups, *[0] * (bucket + 1 - len(facts.wakeups))]
    counts[bucket] += 1
    took_us = int(took_s * 1_000_000)
    return replace(facts, wakeups=tuple(counts), wakeups_us=facts.wakeups_us + took_us)


def facts_of(document: bytes) -> Facts:
    """Reads what became of an instance."""
    return _facts.decode(document)


def started(facts: Facts, *, again: bool = False) -> Facts:
    """What is recorded when an instance is started, or started again after it failed."""
    return replace(
        facts,
        start_count=facts.start_count + 1,
        restart_count=facts.restart_count + again,
        started_ms=now_ms(),
        stop_reason=None,
        stop_code=None,
        exit_code=None,
    )


def service_of(document: bytes) -> ServiceConfig:
    """Reads a service group's configuration."""
    return _service.decode(document)

"""Answers as they go over the wire: field names and units of the platform API.

A member that is None is left out, as that API does.
"""

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from torpor.controller.model import Autokill, Feature, RestartPolicy, ScaleToZero, Service
from torpor.store import State

Status = Literal["success", "error", "partial_success"]


class Answer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A part of an answer."""


class Item(Answer):
    """One object of an answer, or why there is none."""

    status: Status
    message: str | None = None
    error: int | None = None
    uuid: str | None = None
    name: str | None = None


class Problem(Answer):
    """What was wrong with a whole request."""

    status: int
    message: str


class Warning_(Answer):  # noqa: N801 -- a builtin has the name
    """Something to know beside the answer."""

    message: str


class Refusal(Answer, kw_only=True):
    """The envelope of a request that was not carried out at all."""

    status: Literal["error"] = msgspec.field(default_factory=lambda: "error")
    message: str
    errors: list[Problem]
    op_time_us: int


class DomainAnswer(Answer):
    """A host name that leads to a service group."""

    fqdn: str


class GroupOfInstance(Answer):
    """An instance's service group."""

    uuid: str
    name: str
    domains: list[DomainAnswer]


class InterfaceAnswer(Answer):
    """A network interface."""

    uuid: str | None = None
    private_ip: str | None = None
    mac: str | None = None


class RestartAnswer(Answer):
    """The restart that comes next."""

    attempt: int
    next_at: datetime


class UpdateAnswer(Answer, kw_only=True):
    """A change that waits for the instance to stop."""

    prop: str
    op: str
    value: Any = None
    status: Literal["pending", "failed"]
    error: str | None = None


class SnapshotAnswer(Answer):
    """That there is a saved state."""

    uuid: str


class ScaleToZeroAnswer(Answer):
    """When an instance goes to standby by itself."""

    enabled: bool
    policy: Literal["off", "on", "idle"]
    stateful: bool
    cooldown_time_ms: int
    notify_time_ms: int
    wake_on_timer: bool


class InstanceAnswer(Item):
    """An instance, template or checkpoint."""

    created_at: datetime | None = None
    state: State | None = None
    private_fqdn: str | None = None
    image: str | None = None
    memory_mb: int | None = None
    vcpus: int | None = None
    args: list[str] | None = None
    env: dict[str, str] | None = None
    start_count: int | None = None
    restart_count: int | None = None
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    uptime_ms: int | None = None
    boot_time_us: int | None = None
    stop_reason: int | None = None
    exit_code: int | None = None
    stop_code: int | None = None
    restart_policy: RestartPolicy | None = None
    scale_to_zero: ScaleToZeroAnswer | None = None
    service_group: GroupOfInstance | None = None
    tags: list[str] | None = None
    annotations: dict[str, str] | None = None
    snapshot: SnapshotAnswer | None = None
    delete_lock: bool | None = None
    features: list[Feature] | None = None
    restart: RestartAnswer | None = None
    autokill: Autokill | None = None
    template_autokill: Autokill | None = None
    checkpoint_autokill: Autokill | None = None
    updates: list[UpdateAnswer] | None = None
    sched_priority: str | None = None
    hostname: str | None = None


class TransitionAnswer(Item):
    """An instance that was told to go to another state."""

    state: State | None = None
    previous_state: State | None = None


class UpdatedAnswer(Item):
    """An object that was changed; `id` is the one of the request."""

    id: str | None = None


class RangeAnswer(Answer):
    """A range of byte offsets, the end not included."""

    start: int
    end: int


class LogAnswer(Item):
    """A part of a console log, in base64."""

    output: str | None = None
    available: RangeAnswer | None = None
    range: RangeAnswer | None = None
    state: State | None = None


class LatencyBucket(Answer):
    """How many wakes took at most so long, and longer than the bucket before."""

    count: int
    bucket_ms: int | None = None
    """Absent for all that took longer than the last one."""


class MetricsAnswer(Item):
    """What an instance uses; what cannot be measured is left out."""

    state: State | None = None
    rss_bytes: int | None = None
    cpu_time_ms: int | None = None
    boot_time_us: int | None = None
    rx_bytes: int | None = None
    tx_bytes: int | None = None
    nconns: int | None = None
    """Connections that are open and not HTTP."""
    nreqs: int | None = None
    """Requests in flight."""
    nqueued: int | None = None
    """Requests and connections that wait for it, or for any instance of its service group."""
    ntotal: int | None = None
    """Requests and connections that it was sent in all."""
    wakeup_latency: list[LatencyBucket] | None = None
    """From the wake's arrival at torpord until the VM runs."""
    wakeup_latency_sum: int | None = None
    """In ms."""
    start_count: int | None = None
    uptime_ms: int | None = None


class HistoryEntry(Answer):
    """A checkpoint that a state descends from."""

    uuid: str
    name: str
    created_at: datetime


class HistoryAnswer(Item):
    """The checkpoints behind an object, newest first."""

    history: list[HistoryEntry] | None = None


class InstanceOfGroup(Answer):
    """An instance of a service group."""

    uuid: str
    name: str


class ServiceGroupAnswer(Item):
    """A service group."""

    created_at: datetime | None = None
    persistent: bool | None = None
    soft_limit: int | None = None
    hard_limit: int | None = None
    services: list[Service] | None = None
    domains: list[DomainAnswer] | None = None
    instances: list[InstanceOfGroup] | None = None
    autokill: Autokill | None = None


class ImageAnswer(Answer, kw_only=True):
    """An image of the store."""

    url: str
    created_at: datetime | None = None
    initrd_or_rom: bool
    size_in_bytes: int
    args: list[str]
    env: dict[str, str]
    tags: list[str]
    users: list[str]
    persistent: bool


class ImageTag(Answer):
    """A tag of an image of the registry."""

    name: str
    digest: str
    size: int
    push_time: datetime | None = None


class RegistryImage(Answer):
    """An image as the control plane lists it."""

    name: str
    tags: list[ImageTag] | None = None


class Usage(Answer):
    """What there is of each."""

    instances: int
    live_instances: int
    live_vcpus: int
    live_memory_mb: int
    service_groups: int
    services: int


class HardLimits(Answer):
    """What there may be of each."""

    instances: int
    live_instances: int
    live_memory_mb: int
    service_groups: int


class Limits(Answer):
    """Bounds of single objects."""

    min_memory_mb: int
    max_memory_mb: int
    min_vcpus: int
    max_vcpus: int


class QuotaAnswer(Item):
    """A user's quotas."""

    used: Usage | None = None
    hard: HardLimits | None = None
    limits: Limits | None = None


class MetroAnswer(Answer):
    """This server, as a metro."""

    uuid: str
    endpoint: str
    name: str
    iata_code: str
    country: str


class NodeAnswer(Answer):
    """This machine, as a node."""

    uuid: str
    name: str
    state: Literal["ready"]
    cloudprovider: Literal["manual"]
    vcpus: int
    memory_mib: int
    metro: str
    api_endpoint: str
    uptime_seconds: int


class TokenAnswer(Item):
    """An API token. `token` is there only in the answer that makes it."""

    scopes: list[str] | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    token: str | None = None


class BuildProblem(Answer):
    """Why a build request was refused."""

    code: str
    message: str


class BuildRefusal(Answer):
    """The build API has no envelope."""

    error: BuildProblem


def moment(milliseconds: int) -> datetime | None:
    """A time of the store; None for 0, which is never."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def scale_to_zero(policy: ScaleToZero | None) -> ScaleToZeroAnswer | None:
    """A policy with all its members."""
    if policy is None:
        return None
    return ScaleToZeroAnswer(
        enabled=policy.policy != "off",
        policy=policy.policy,
        stateful=policy.stateful,
        cooldown_time_ms=policy.cooldown_time_ms,
        notify_time_ms=policy.notify_time_ms,
        wake_on_timer=policy.wake_on_timer,
    )

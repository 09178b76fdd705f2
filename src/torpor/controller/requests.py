"""What clients ask for, as typed values: unknown members and wrong types never get further.

Field names, units and defaults are the platform API's.
"""

from typing import Annotated, Any, Literal

import msgspec

from torpor.controller.model import Autokill, Feature, RestartPolicy, ScaleToZero, Service

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Seconds = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A body, or an item of one."""


class Reference(Request, frozen=True):
    """An object by uuid or by name."""

    uuid: str | None = None
    name: str | None = None


class ImageSpec(Request, frozen=True):
    """An image with what is needed to fetch it."""

    url: str
    credentials: str | None = None
    headers: dict[str, str] | None = None
    pull_policy: Literal["always", "if_not_present", "never"] | None = None


class Domain(Request, frozen=True):
    """A domain of a service group."""

    name: str
    certificate: Reference | None = None


class ServiceGroupSpec(Request, frozen=True):
    """The service group of a new instance: one that exists, or a new one that goes with it."""

    uuid: str | None = None
    name: str | None = None
    domains: list[Domain] | None = None
    services: list[Service] | None = None
    soft_limit: int | None = None
    hard_limit: int | None = None


class TemplateSpec(Request, frozen=True):
    """The template of a new instance, made first if it is to be prepared."""

    uuid: str | None = None
    name: str | None = None
    prepare: bool = False
    create_args: "CreateInstance | None" = None
    prepare_timeout_s: Seconds = 0
    autokill: Autokill | None = None


class CreateInstance(Request, frozen=True):
    """A new instance. `None` is the same as leaving a member out."""

    name: str | None = None
    image: str | ImageSpec | None = None
    args: list[str] | None = None
    env: dict[str, str] | None = None
    memory_mb: Int32 | None = None
    service_group: ServiceGroupSpec | None = None
    autostart: bool | None = None
    replicas: Annotated[int, msgspec.Meta(ge=0, le=10_000)] | None = None
    restart_policy: RestartPolicy | None = None
    scale_to_zero: ScaleToZero | None = None
    vcpus: Int32 | None = None
    wait_timeout_ms: Int32 | None = None
    features: list[Feature] | None = None
    timeout_s: Seconds | None = None
    tags: list[str] | None = None
    annotations: dict[str, str] | None = None
    template: TemplateSpec | None = None
    sched_priority: Literal["normal", "medium", "high", "admin"] | None = None
    autokill: Autokill | None = None
    hostname: str | None = None
    branch_from: Reference | None = None
    checkpoint: Reference | None = None
    delete_lock: bool | None = None
    type: Literal["micro", "full"] | None = None
    volumes: list[Any] | None = None
    roms: list[Any] | None = None
    plugins: list[Any] | None = None
    schedules: list[Any] | None = None
    dependencies: list[Any] | None = None
    gateway: str | None = None
    nameserver: str | None = None
    network_interfaces: list[Any] | None = None
    gpus: int | None = None

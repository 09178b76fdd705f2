"""New instances: from an image, a template, a checkpoint, or a branch of another instance."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from msgspec.structs import replace

from torpor.controller.errors import Code, ItemError, from_store, invalid, not_supported
from torpor.controller.events import now_ms
from torpor.controller.model import Config, Facts, Lineage, config_of, encode, facts_of, started
from torpor.controller.quotas import Quotas
from torpor.controller.requests import CreateInstance, ImageSpec, Reference
from torpor.controller.rules import (
    MEMORY_MB,
    check_annotations,
    check_args,
    check_autokill,
    check_env,
    check_hostname,
    check_memory,
    check_name,
    check_tags,
    check_vcpus,
    random_name,
)
from torpor.controller.vm import Saved
from torpor.store import (
    InstanceRow,
    Kind,
    NewInstance,
    NewService,
    Owner,
    ServiceRow,
    StoreError,
)

if TYPE_CHECKING:
    from torpor.controller.controller import Controller

_UNSUPPORTED = (
    "volumes",
    "roms",
    "plugins",
    "schedules",
    "dependencies",
    "gateway",
    "nameserver",
    "network_interfaces",
    "gpus",
)
_SOURCES = ("image", "template", "branch_from", "checkpoint")
_INHERITED = ("image", "args", "env", "memory_mb", "vcpus")
"""What an instance takes over from what it is branched from, and cannot set itself."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A new instance that was found to be in order."""

    name: str
    config: Config
    facts: Facts
    tags: tuple[str, ...]
    content: tuple[Saved, str] | None = None
    """The memory it begins with, and as what that was stored, if it is a branch."""


class Creation:
    """Makes instances. One per controller."""

    def __init__(self, controller: "Controller") -> None:
        self._controller = controller
        self._preparing: dict[tuple[int, str], asyncio.Lock] = {}

    async def create(
        self, owner: Owner, requests: Sequence[CreateInstance]
    ) -> list[InstanceRow | ItemError]:
        """Records instances with their service groups, most of them in one change. Starts none.

        Those that are to be started are recorded as `starting`.
        """
        answers: list[InstanceRow | ItemError] = []
        waiting: list[NewInstance] = []
        images: dict[str, str] = {}
        services: dict[str, int] = {}

        async def record() -> None:
            answers.extend(await self._record(owner, waiting, services))
            waiting.clear()

        for request in requests:
            service: int | NewService | None = None
            for number in range((request.replicas or 0) + 1):
                try:
                    planned = await self._plan(owner, request, number, images)
                    # Replicas share their service group.
                    if service is None and request.service_group is not None:
                        if request.service_group.services is None:
                            await record()  # it may name the group of an earlier one
                        service = await self._service(owner, request)
                    if planned.content is None:
                        waiting.append(_new(planned, service, starts=bool(request.autostart)))
                        continue
                    await record()
                    answers.append(await self._branched(owner, planned, service, services))
                except ItemError as error:
                    await record()
                    error.name = error.name or (request.name or "")
                    answers.append(error)
        await record()
        return answers

    async def _record(
        self, owner: Owner, new: Sequence[NewInstance], services: dict[str, int]
    ) -> list[InstanceRow | ItemError]:
        """Records instances. `services` are the ids of the request's new groups so far, by uuid."""
        if not new:
            return []
        controller, quotas = self._controller, Quotas.of(owner)
        wanted = [
            replace(its, service=None, service_id=services[its.service.uuid])
            if its.service is not None and its.service.uuid in services
            else its
            for its in new
        ]
        added: Sequence[InstanceRow | StoreError]
        try:
            added = await controller.store.instances.add(
                owner.id, wanted, quotas.instances, quotas.service_groups
            )
        except StoreError as error:  # a full disk: none of them
            added = [error] * len(wanted)
        made: list[ServiceRow] = []
        answers: list[InstanceRow | ItemError] = []
        for its, row in zip(wanted, added, strict=True):
            if isinstance(row, StoreError):
                if its.service is not None:
                    controller.groups.close_unused(its.service.claims)
                answers.append(from_store(row, name=its.name))
                continue
            answers.append(row)
            service, service_id = its.service, row.service_id
            if service is not None and service_id is not None and service.uuid not in services:
                services[service.uuid] = service_id
                made.append(service.recorded(service_id, owner.id))
        await controller.groups.created(made)
        return answers

    async def _branched(
        self,
        owner: Owner,
        planned: Planned,
        service: int | NewService | None,
        services: dict[str, int],
    ) -> InstanceRow:
        """Records an instance that begins with another's memory."""
        controller = self._controller
        (row,) = await self._record(owner, [_new(planned, service, starts=False)], services)
        if isinstance(row, ItemError):
            raise row
        assert planned.content is not None  # noqa: S101 -- the caller looked
        saved, origin = planned.content
        try:
            return await controller.saved.commit(
                replace(row, state="standby"),
                saved,
                image=planned.config.image_digest,
                origin=origin,
            )
        except StoreError as error:
            with contextlib.suppress(StoreError):  # a full disk can keep it from being undone
                await controller.store.remove_instances([row])
                if row.service_id is not None:
                    await controller.groups.release(row.service_id)
            raise from_store(error, name=planned.name) from error

    async def _service(self, owner: Owner, request: CreateInstance) -> int | NewService:
        """The id of the service group that a request names, or the new one that it describes."""
        spec = request.service_group
        assert spec is not None  # noqa: S101 -- the caller looked
        controller = self._controller
        if spec.uuid is not None or (spec.name is not None and spec.services is None):
            return controller.service(owner, Reference(uuid=spec.uuid, name=spec.name)).id
        if spec.services is None:
            raise invalid("service_group", "must have 'services', or name one that exists")
        return await controller.groups.planned(
            name=spec.name,
            services=spec.services,
            domains=spec.domains,
            soft_limit=spec.soft_limit,
            hard_limit=spec.hard_limit,
            persistent=False,
        )

    async def _plan(
        self, owner: Owner, request: CreateInstance, number: int, images: dict[str, str]
    ) -> Planned:
        for field in _UNSUPPORTED:
            if getattr(request, field):
                raise not_supported(f"'{field}' of an instance")
        if request.type == "full":
            raise not_supported("'type' full")
        given = [field for field in _SOURCES if getattr(request, field) is not None]
        if len(given) != 1:
            raise ItemError(
                Code.CONFLICTING,
                f"Cannot specify '{given[0]}' when '{given[1]}' is set"
                if given
                else "One of 'image', 'template', 'branch_from' and 'checkpoint' is needed",
            )
        name = request.name or random_name()
        if request.replicas and request.name:
            name = f"{request.name}-{number}" if number else request.name
        check_name(name)
        source, base = await self._source(owner, request, given[0], images)
        if source is None:
            config = base
        else:
            for field in _INHERITED:
                if getattr(request, field) is not None:
                    raise ItemError(
                        Code.CONFLICTING,
                        f"Cannot specify '{field}' when creating from a {source.kind}"
                        if source.kind != "instance"
                        else f"Cannot specify '{field}' when branching from an existing instance",
                    )
            config = replace(base, delete_lock=False)
        config = _configured(config, request)
        tags = check_tags(request.tags or (source.tags if source is not None else ()))
        facts, content = Facts(), None
        if source is not None and source.kind != "template":
            content = await self._content(source)
            facts = Facts(history=facts_of(source.facts).history)
            if source.kind == "checkpoint":
                own = Lineage(uuid=source.uuid, name=source.name, created_ms=source.created_ms)
                facts = Facts(history=(own, *facts.history)[:1000])
        limits = Quotas.of(owner)
        most_mb = min(limits.max_memory_mb, MEMORY_MB[1])
        check_memory(config.memory_mb, limits.min_memory_mb, most_mb)
        check_vcpus(config.vcpus)
        return Planned(name, config, facts, tags, content)

    async def _source(
        self, owner: Owner, request: CreateInstance, field: str, images: dict[str, str]
    ) -> tuple[InstanceRow | None, Config]:
        controller = self._controller
        if field == "image":
            image = request.image.url if isinstance(request.image, ImageSpec) else request.image
            assert image is not None  # noqa: S101 -- it is the field that was given
            if image not in images:
                images[image] = controller.machines.resolve(image).digest
            return None, Config(image=image, image_digest=images[image])
        kinds: dict[str, Kind] = {
            "template": "template",
            "checkpoint": "checkpoint",
            "branch_from": "instance",
        }
        if field == "template":
            row = await self._template(owner, request)
            await controller.touch(row)
            return row, replace(config_of(row.config), template=row.uuid)
        reference = getattr(request, field)
        row = controller.find(owner, kinds[field], reference)
        if field == "checkpoint":
            await controller.touch(row)
        return row, config_of(row.config)

    async def _template(self, owner: Owner, request: CreateInstance) -> InstanceRow:
        spec = request.template
        assert spec is not None  # noqa: S101 -- the caller looked
        reference = Reference(uuid=spec.uuid, name=spec.name)
        if not spec.prepare:
            return self._controller.find(owner, "template", reference)
        if spec.name is None or spec.create_args is None:
            raise invalid("template", "with 'prepare' needs 'name' and 'create_args'")
        key = (owner.id, spec.name)
        async with self._preparing.setdefault(key, asyncio.Lock()):
            try:
                return self._controller.find(owner, "template", reference)
            except ItemError as error:
                if error.code is not Code.NOT_FOUND:
                    raise
            return await self._controller.prepare_template(owner, spec)

    async def _content(self, source: InstanceRow) -> tuple[Saved, str] | None:
        lifecycle = self._controller.lifecycle
        if source.kind == "instance":
            return await lifecycle.state_content(source)
        try:
            if self._controller.store.snapshots.find(source.id) is None:
                return None
            return await lifecycle.saved_of(source)
        except StoreError as error:
            raise from_store(error, uuid=source.uuid, name=source.name) from error


def _configured(config: Config, request: CreateInstance) -> Config:
    changes: dict[str, Any] = {}
    if request.args is not None:
        check_args(request.args)
        changes["args"] = tuple(request.args)
    if request.env is not None:
        check_env(request.env)
        changes["env"] = request.env
    if request.hostname is not None:
        check_hostname(request.hostname)
    if request.annotations is not None:
        check_annotations(request.annotations)
    if request.sched_priority == "admin":
        raise ItemError(Code.NOT_ALLOWED, "'sched_priority' admin needs a permission")
    if request.scale_to_zero is not None:
        policy = request.scale_to_zero
        if not 1 <= policy.cooldown_time_ms <= 86_400_000:
            raise invalid("scale_to_zero.cooldown_time_ms", "must be 1 to 86400000")
        if policy.notify_time_ms and not 0 < policy.notify_time_ms < policy.cooldown_time_ms:
            raise invalid("scale_to_zero.notify_time_ms", "must be less than cooldown_time_ms")
        if policy.policy != "off" and request.service_group is None:
            raise invalid("scale_to_zero", "needs 'service_group'")
    if request.features is not None:
        if "nested-virt" in request.features:
            raise not_supported("'features' nested-virt")
        on = request.scale_to_zero is not None and request.scale_to_zero.policy != "off"
        if on or (request.restart_policy or "never") != "never":
            raise invalid("features", "delete-on-stop needs restart never and no scale_to_zero")
        changes["features"] = tuple(request.features)
    check_autokill(request.autokill, takes_requests=True)
    if request.timeout_s and not request.autostart:
        raise invalid("timeout_s", "needs 'autostart'")
    for field in (
        "memory_mb",
        "vcpus",
        "restart_policy",
        "scale_to_zero",
        "hostname",
        "annotations",
        "sched_priority",
        "autokill",
        "delete_lock",
    ):
        value = getattr(request, field)
        if value is not None:
            changes[field] = value
    return replace(config, **changes)


def _new(planned: Planned, service: int | NewService | None, *, starts: bool) -> NewInstance:
    facts = started(planned.facts) if starts else planned.facts
    return NewInstance(
        uuid=str(uuid4()),
        name=planned.name,
        state="starting" if starts else "stopped",
        memory_mb=planned.config.memory_mb,
        vcpus=planned.config.vcpus,
        created_ms=now_ms(),
        config=encode(planned.config),
        facts=encode(facts),
        tags=planned.tags,
        service_id=service if isinstance(service, int) else None,
        service=service if isinstance(service, NewService) else None,
    )

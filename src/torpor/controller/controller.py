"""The controller: everything that clients can ask for, on instances, templates and checkpoints."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from msgspec.structs import replace

from torpor.controller.console import Console
from torpor.controller.creating import Creation
from torpor.controller.errors import Code, ItemError, from_store, invalid
from torpor.controller.events import Events, Origin, now_ms
from torpor.controller.groups import ServiceGroups
from torpor.controller.lifecycle import Lifecycle
from torpor.controller.links import Links, NoLinks
from torpor.controller.live import Live
from torpor.controller.machines import Machines
from torpor.controller.model import (
    LOST,
    Autokill,
    Config,
    Facts,
    Lineage,
    PendingUpdate,
    Service,
    config_of,
    encode,
    facts_of,
    kill_ms_of,
    requests_left,
    with_documents,
)
from torpor.controller.quotas import Quotas
from torpor.controller.requests import CreateInstance, TemplateSpec
from torpor.controller.restart import Backoff
from torpor.controller.routing import Router
from torpor.controller.rules import check_autokill, check_name, check_tags, random_suffix
from torpor.controller.saved import SavedStates
from torpor.controller.sealing import Seal
from torpor.controller.templates import Templates
from torpor.controller.updates import AT_ONCE, change
from torpor.controller.upkeep import Policy, Upkeep
from torpor.controller.vm import VmHost
from torpor.images import ImageStore
from torpor.store import (
    InstanceRow,
    Kind,
    NewInstance,
    Owner,
    PortClaim,
    ServiceRow,
    State,
    Store,
    StoreError,
)

REPLACE_DRAIN_MS = 10_000
"""How long requests in flight may take of an instance whose place another one takes."""
UNFINISHED_MS = 600_000
"""How long the state of a checkpoint may take to be stored."""
FOREVER_S = 10 * 365 * 86400.0
NAMED = 3
"""How many of the instances that are in the way of something are named."""


class Controller:
    """One per torpord. Everything runs in its event loop."""

    def __init__(
        self,
        data_dir: Path,
        store: Store,
        host: VmHost,
        *,
        links: Links | None = None,
        domain_suffix: str = "localhost",
        backoff: Backoff = Backoff(),  # noqa: B008 -- immutable
        policy: Policy = Policy(),  # noqa: B008 -- immutable
        tiered: bool = False,
    ) -> None:
        self.store = store
        self.images = ImageStore(data_dir)
        self.events = Events()
        self.console = Console(store)
        self.saved = SavedStates(store, Seal.of(data_dir))
        self.links: Links = links or NoLinks()
        self.groups = ServiceGroups(store, domain_suffix, self.links)
        self.machines = Machines(store, self.images, self.groups)
        self.templates = Templates(store, self.saved, host)
        self.lifecycle = Lifecycle(
            store,
            host,
            self.machines,
            self.saved,
            self.templates,
            self.links,
            self.groups,
            self.events,
            self.console,
            backoff,
            policy.timer_interval_s,
        )
        self.router = Router(
            store, self.lifecycle, self.groups, self.links, self.console, self.events
        )
        host.begin(self.saved.open_base, self.templates.warm, store.bases.by_digest)
        self.upkeep = Upkeep(
            store,
            self.lifecycle,
            self.groups,
            self.machines,
            self.templates,
            host,
            policy,
            tiered=tiered,
            kill=self._kill,
        )
        self._host = host
        self._creation = Creation(self)
        self._background: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Takes over what an earlier torpord left. Before this nothing may be started."""
        self.store.sweep_staging()
        await self.lifecycle.adopt()
        self._host.start(self.links.relieve)
        self._keep(asyncio.create_task(self.console.run()))
        self._keep(asyncio.create_task(self.upkeep.run()))

    async def close(self) -> None:
        """Ends; VMs run on."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.lifecycle.close()
        await self.templates.close()
        await self.console.flush()
        await self._host.close()

    def _keep(self, task: "asyncio.Task[Any]") -> None:
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def quiesce(self, timeout_s: float) -> int:
        """Puts what is stateful into standby, ends the rest; how many run on after that time.

        What ran goes on with the next torpord, and with this one nothing is started or woken any
        more: requests go on while a server ends.
        """
        self.lifecycle.refuse_starts()

        async def one(live: Live) -> None:
            if live.woken:
                # Until it runs it could only be stopped, and its state would be lost.
                await live.settled.wait()
                if not self.lifecycle.lives.has(live):
                    return
            # A quarter each for what is in flight and for the program behind its SIGTERM.
            drain_ms, end_s = int(timeout_s * 250), timeout_s / 4
            if live.policy.stateful and live.state == "running":
                await self.lifecycle.suspend(live.row, "system", drain_ms=drain_ms)
            elif live.state in ("starting", "running"):
                await self.lifecycle.put_away(live, drain_ms=drain_ms, timeout_s=end_s)
            elif live.vm is not None:
                await self.wait(live.row, "stopped", timeout_s)  # as somebody has asked

        lives = self.lifecycle.lives.all()
        work = asyncio.gather(*(one(live) for live in lives), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(work, timeout_s)
        lives = self.lifecycle.lives.all()
        return sum(live.vm is not None or live.state == "starting" for live in lives)

    # Finding ------------------------------------------------------------------------------------

    def find(self, owner: Owner, kind: Kind, reference: Any) -> InstanceRow:
        """The object that a request names by uuid or name. Raises ItemError."""
        uuid, name = _named(reference)
        try:
            return self.store.instances.find(owner.id, kind, uuid=uuid, name=name)
        except StoreError as error:
            raise from_store(error, uuid=uuid, name=name) from error

    def service(self, owner: Owner, reference: Any) -> ServiceRow:
        """The service group that a request names. Raises ItemError."""
        uuid, name = _named(reference)
        try:
            return self.store.services.find(owner.id, uuid=uuid, name=name)
        except StoreError as error:
            raise from_store(error, uuid=uuid, name=name) from error

    # Instances ----------------------------------------------------------------------------------

    async def create(
        self, owner: Owner, requests: Sequence[CreateInstance]
    ) -> list[InstanceRow | ItemError]:
        """Records new instances and begins to start those that are to be."""
        answers = await self._creation.create(owner, requests)
        wanted = [
            request.autostart for request in requests for _ in range((request.replicas or 0) + 1)
        ]

        async def begin(position: int, row: InstanceRow) -> None:
            try:
                await self._start_created(owner, row)
            except (ItemError, StoreError) as error:
                failure = from_store(error) if isinstance(error, StoreError) else error
                failure.uuid, failure.name = row.uuid, row.name
                answers[position] = failure

        # Side by side, so that what they write is committed in groups.
        await asyncio.gather(
            *(
                begin(position, answer)
                for position, (answer, autostart) in enumerate(zip(answers, wanted, strict=True))
                if autostart and isinstance(answer, InstanceRow)
            )
        )
        return answers

    async def _start_created(self, owner: Owner, row: InstanceRow) -> None:
        """Begins to start an instance that was just recorded. Raises ItemError."""
        if row.state == "standby":  # it begins with another's memory
            await self.start(owner, row)
            return
        try:
            self._check_live_quota(owner, row)
        except ItemError:
            await self.lifecycle.lives.write_state(row, "stopped", LOST)
            raise
        await self.lifecycle.start(row, "api", created=True)

    async def start(self, owner: Owner, row: InstanceRow) -> State:
        """Begins to start an instance; the state it was in. Raises ItemError."""
        if self.lifecycle.lives.get(row.id) is None:
            self._check_live_quota(owner, row)
        return await self.lifecycle.start(row, "api")

    def prepare(self, row: InstanceRow) -> None:
        """Has the next start of a configuration make its template. Raises ItemError."""
        self.templates.ask_for(self.machines.of(row, config_of(row.config)))

    def _check_live_quota(self, owner: Owner, row: InstanceRow) -> None:
        quotas = Quotas.of(owner)
        instances, memory_mb = self.lifecycle.lives.load_of(owner.id)
        if instances >= quotas.live_instances:
            raise ItemError(Code.QUOTA, f"Quota of {quotas.live_instances} live instances exceeded")
        if memory_mb + row.memory_mb > quotas.live_memory_mb:
            raise ItemError(Code.QUOTA, f"Quota of {quotas.live_memory_mb} MB live exceeded")

    async def wait(self, row: InstanceRow, state: State, timeout_s: float) -> tuple[State, bool]:
        """Waits for a state: the state at the end, and whether it is the one wanted.

        A negative time is for ever. Ends at once when the object is gone: state `deleted`.
        """
        return await self._wait(row, (state, "deleted"), state, timeout_s)

    async def wait_until_started(self, row: InstanceRow, timeout_s: float) -> tuple[State, bool]:
        """Waits for `running`, and no longer when it stopped or was deleted instead."""
        return await self._wait(row, ("running", "stopped", "deleted"), "running", timeout_s)

    async def _wait(
        self, row: InstanceRow, ends: tuple[State, ...], wanted: State, timeout_s: float
    ) -> tuple[State, bool]:
        with self.events.watch(row.uuid) as changed:
            try:
                async with asyncio.timeout(FOREVER_S if timeout_s < 0 else timeout_s):
                    while True:
                        changed.clear()
                        now = self._state_now(row)
                        if now in ends:
                            return now, now == wanted
                        await changed.wait()
            except TimeoutError:
                return self._state_now(row), False

    def _state_now(self, row: InstanceRow) -> State:
        current = self.store.instances.by_id(row.id)
        return "deleted" if current is None else self.lifecycle.lives.state(current)

    async def delete(self, row: InstanceRow, origin: Origin = "api") -> State:
        """Deletes an instance, template or checkpoint; the state it was in. Raises ItemError."""
        _check_deletable(row)
        if row.kind == "template" and origin == "api":
            await self._check_unused(row)
        previous = self.lifecycle.lives.state(row)

        async def remove(last: InstanceRow) -> None:
            if origin == "autokill" and last.kill_ms != row.kill_ms:
                raise ItemError(Code.WRONG_STATE, "It was used meanwhile")
            (failure,) = await self.store.remove_instances([last])
            if failure is not None:
                raise failure

        try:
            alone = origin == "autokill"
            last = await self.lifecycle.retire(row, remove, unless_live=alone)
        except StoreError as error:
            raise from_store(error, uuid=row.uuid, name=row.name) from error
        if last.service_id is not None:
            await self.groups.release(last.service_id)
        self.lifecycle.lives.announce(last, previous, "deleted", origin)
        return previous

    async def _check_unused(self, template: InstanceRow) -> None:
        """Raises ItemError if instances begin with a template.

        Its autokill does not ask: that is about its last clone, whatever became of it.
        """
        mentioning = self.store.instances.mentioning(template.owner_id, template.uuid)
        names = [
            name async for name, config in mentioning if config_of(config).template == template.uuid
        ]
        if not names:
            return
        shown = ", ".join(f"'{name}'" for name in names[:NAMED])
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        begin, them = ("begins", "it") if len(names) == 1 else ("begin", "them")
        raise ItemError(
            Code.ATTACHED,
            f"{shown}{more} {begin} with template '{template.name}': delete {them} first",
            uuid=template.uuid,
            name=template.name,
        )

    async def _kill(self, row: InstanceRow) -> None:
        """Deletes what was not used for as long as it was told, unless it is used just now."""
        with contextlib.suppress(ItemError):
            await self.delete(row, "autokill")

    async def replace(
        self, row: InstanceRow, former: InstanceRow, services: Sequence[Service] = ()
    ) -> None:
        """Gives name and service group of `former` to `row`, and deletes it behind its requests.

        The group has these services then, if any are given: no request of the one's goes to a port
        of the other's. Raises ItemError, and then `former` serves on; only when it could not be
        deleted it is there under another name.
        """
        if row.id == former.id:
            raise invalid("former", "must be another instance")
        if former.service_id is None:
            raise invalid("former", "must have a service group")
        _check_deletable(former)
        group_id = former.service_id
        aside = f"{former.name[:240]}-{random_suffix()}"

        async def write(old: InstanceRow, new: InstanceRow) -> tuple[InstanceRow, InstanceRow]:
            state: State = "draining" if old.state == "draining" else "stopped"
            facts = replace(facts_of(old.facts), stopped_ms=now_ms())
            # Should torpord be killed before it has deleted it, the next one does.
            config = replace(config_of(old.config), autokill=Autokill(time_ms=1))
            old = replace(with_documents(old, config, facts, state), name=aside, service_id=None)
            new = replace(new, name=former.name, service_id=group_id)

            async def all_at_once(
                group: ServiceRow, ports: int, claims: tuple[PortClaim, ...]
            ) -> ServiceRow:
                nonlocal old, new
                old, new, written = await self.store.replace_instance(
                    old, new, group, ports, claims
                )
                return written

            await self.groups.replacing(group_id, services, all_at_once)
            return old, new

        self.groups.switching.add(group_id)
        try:
            generation = await self.lifecycle.replace(former, row, write)
        except StoreError as error:
            raise from_store(error, uuid=row.uuid, name=row.name) from error
        finally:
            self.groups.switching.discard(group_id)
        if row.service_id is not None and row.service_id != group_id:
            await self.groups.release(row.service_id)
        if generation is not None:
            await self.links.drain(former.uuid, generation, REPLACE_DRAIN_MS)
        try:
            await self.delete(replace(former, name=aside))
        except ItemError as error:
            if error.code is not Code.NOT_FOUND:  # it has stopped, and was deleted, by itself
                raise

    async def update(self, row: InstanceRow, prop: str, op: str, value: Any) -> None:
        """Changes one property, now or, if the instance runs, when it stops. Raises ItemError."""

        def apply(row: InstanceRow, config: Config, facts: Facts, live: bool) -> InstanceRow:
            if prop == "tags":
                return replace(row, tags=_tags(row.tags, op, value))
            changed = change(config, prop, op, value)
            if prop == "autokill" and row.kind != "instance":
                check_autokill(changed.autokill)
            if prop == "image" and changed.image:
                digest = self.machines.resolve(changed.image).digest
                changed = replace(changed, image_digest=digest)
            if live and prop not in AT_ONCE:
                digest = changed.image_digest if prop == "image" else ""
                update = PendingUpdate(prop=prop, op=op, value=value, image_digest=digest)
                facts = replace(facts, updates=(*facts.updates, update)[-64:])
                return with_documents(row, config, facts, row.state)
            return with_documents(row, changed, facts, row.state)

        await self.lifecycle.edit(row, apply)
        live = self.lifecycle.lives.get(row.id)
        if live is not None and prop in AT_ONCE:
            self.links.allow(row.uuid, live.link_generation, requests_left(live.config, live.facts))

    # Templates and checkpoints ------------------------------------------------------------------

    async def make_template(
        self, owner: Owner, row: InstanceRow, autokill: Autokill | None
    ) -> InstanceRow:
        """Turns an instance, which runs or is started for it, into a template. Raises ItemError."""
        check_autokill(autokill)
        if self.lifecycle.lives.state(row) in ("stopped", "standby"):
            await self.start(owner, row)
        state, reached = await self.wait(row, "running", -1)
        if not reached:
            raise ItemError(Code.FAILED, f"The instance came to be {state} instead of running")
        await self.lifecycle.suspend(row, "api")

        def convert(row: InstanceRow, config: Config, facts: Facts, live: bool) -> InstanceRow:
            if live or row.state != "standby":
                raise ItemError(Code.WRONG_STATE, "The instance was started meanwhile")
            config = replace(config, autokill=autokill, template="")
            facts = replace(facts, used_ms=now_ms())
            made = with_documents(row, config, facts, "template")
            return replace(made, kind="template", service_id=None)

        made = await self.lifecycle.edit(row, convert)
        if row.service_id is not None:
            await self.groups.release(row.service_id)
        self.events.notify(row.uuid)
        return made

    async def prepare_template(self, owner: Owner, spec: TemplateSpec) -> InstanceRow:
        """Makes a template from the instance that `create_args` describe. Raises ItemError."""
        assert spec.create_args is not None  # noqa: S101 -- the caller looked
        args = replace(
            spec.create_args, name=spec.name, autostart=False, timeout_s=None, replicas=None
        )
        (source,) = await self._creation.create(owner, [args])
        if isinstance(source, ItemError):
            raise source
        try:
            async with asyncio.timeout(spec.prepare_timeout_s or None):
                return await self.make_template(owner, source, spec.autokill)
        except TimeoutError as error:
            await self.delete(source)
            raise ItemError(
                Code.TIMED_OUT, f"Preparing template '{spec.name}' timed out", name=spec.name or ""
            ) from error
        except ItemError:
            await self.delete(source)
            raise

    async def checkpoint(
        self,
        owner: Owner,
        source: InstanceRow,
        name: str | None,
        tags: Sequence[str] | None,
        autokill: Autokill | None,
    ) -> InstanceRow:
        """Saves the state of an instance under a name of its own. Raises ItemError."""
        name = name or f"{source.name[:240]}-{random_suffix()}"
        check_name(name)
        check_autokill(autokill)
        unique = check_tags(source.tags if tags is None else tags)
        found = await self.lifecycle.state_content(source)
        config = replace(config_of(source.config), delete_lock=False, autokill=autokill)
        used = Facts(history=facts_of(source.facts).history, used_ms=now_ms())
        new = NewInstance(
            uuid=str(uuid4()),
            name=name,
            state="checkpoint",
            memory_mb=config.memory_mb,
            vcpus=config.vcpus,
            created_ms=now_ms(),
            config=encode(config),
            facts=encode(used),
            tags=unique,
            kind="checkpoint",
            # Without its state it is none: should torpord be killed before that is there, it goes.
            kill_ms=now_ms() + UNFINISHED_MS if found else kill_ms_of(config, used, "checkpoint"),
        )
        try:
            (row,) = await self.store.instances.add(owner.id, [new])
            if isinstance(row, StoreError):
                raise row
            if found is not None:
                saved, origin = found
                row = replace(row, kill_ms=kill_ms_of(config, used, "checkpoint"))
                try:
                    row = await self.saved.commit(
                        row, saved, image=config.image_digest, origin=origin
                    )
                except StoreError:
                    with contextlib.suppress(StoreError):
                        await self.store.remove_instances([row])
                    raise
        except StoreError as error:
            raise from_store(error, name=name) from error
        own = Lineage(uuid=row.uuid, name=row.name, created_ms=row.created_ms)

        def remember(row: InstanceRow, config: Config, facts: Facts, live: bool) -> InstanceRow:  # noqa: ARG001
            facts = replace(facts, history=(own, *facts.history)[:1000])
            return with_documents(row, config, facts, row.state)

        await self.lifecycle.edit(source, remember)
        return row

    async def touch(self, row: InstanceRow) -> None:
        """Notes that a template or checkpoint was used, once a minute at most."""
        facts = facts_of(row.facts)
        if now_ms() - facts.used_ms < 60_000:
            return

        def used(row: InstanceRow, config: Config, facts: Facts, live: bool) -> InstanceRow:  # noqa: ARG001
            facts = replace(facts, used_ms=now_ms())
            return with_documents(row, config, facts, row.state)

        await self.lifecycle.edit(row, used)


def _named(reference: Any) -> tuple[str, str]:
    uuid, name = reference.uuid, reference.name
    if uuid is not None and name is not None:
        raise ItemError(Code.CONFLICTING, "Give 'uuid' or 'name', not both", uuid=uuid, name=name)
    if not uuid and not name:
        raise ItemError(Code.MISSING_ID, "One of 'uuid' and 'name' is needed")
    return uuid or "", name or ""


def _tags(current: tuple[str, ...], op: str, value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else (value or [])
    if not isinstance(given, list) or not all(isinstance(tag, str) for tag in given):
        raise invalid("value", "of 'tags' must be a list of strings")
    if op == "set":
        return check_tags(given)
    if op == "add":
        return check_tags([*current, *given])
    return tuple(tag for tag in current if tag not in given)


def _check_deletable(row: InstanceRow) -> None:
    if config_of(row.config).delete_lock:
        raise ItemError(
            Code.NOT_ALLOWED, "Deletion protection enabled", uuid=row.uuid, name=row.name
        )

"""The states of instances and every way from one to another.

    stopped ──start──▶ starting ──ready──▶ running ──stop──▶ draining ─▶ stopping ─▶ stopped
                          ▲                   │                                        │
    standby ──wake────────┘                   ├──suspend──▶ standby                    │
                                              └──program ends──▶ stopped ──policy──▶ starting

An instance that is stopped or in standby is a row of the store and nothing else. One that is
neither has a `Live` here, whose state counts. A wake writes nothing: until the next commit the row
says `standby`, which is what is true if everything dies at once.

Lock order: an instance's lock (`Lifecycle.lock`) is held around every change of its state, and
never two instances' at once. Callbacks from VM processes take no lock; they start a task.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from torpor.controller.console import Console
from torpor.controller.errors import BusyError, Code, ItemError, from_store
from torpor.controller.events import Event, Events, Origin, now_ms
from torpor.controller.groups import ServiceGroups
from torpor.controller.links import Attachment, Links, Why
from torpor.controller.live import Live, facts_of_end
from torpor.controller.machines import Machines
from torpor.controller.model import (
    FORCED_BY_USER,
    LOST,
    NO_IMAGE,
    SCALED_TO_ZERO,
    STOPPED_BY_USER,
    Config,
    Facts,
    config_of,
    facts_of,
    with_documents,
)
from torpor.controller.restart import Backoff, wants_restart
from torpor.controller.saved import SavedStates
from torpor.controller.templates import Templates
from torpor.controller.updates import apply_pending
from torpor.controller.vm import Exit, Found, Identity, Saved, VmHost, VmProcess
from torpor.controller.vm import State as SavedState
from torpor.errors import TorporError
from torpor.store import ConflictError, InstanceRow, State, Store, StoreError

STOP_TIMEOUT_S = 10.0
READY_S = 10.0
"""After this a program that was started counts as ready, though it listens nowhere."""
STANDBY_S = 10.0
"""How long a busy VM may take to come to a point where it can be stored."""
IDLE_S = 0.5
"""The same for a VM that is silent: if it is busy after all, it is asked again later."""
RETRY_S = 1.0
"""Between attempts to record what has happened already, while the disk is full."""


class Lifecycle:
    """All instances that are live, and the transitions of all instances."""

    def __init__(
        self,
        store: Store,
        host: VmHost,
        machines: Machines,
        saved: SavedStates,
        templates: Templates,
        links: Links,
        groups: ServiceGroups,
        events: Events,
        console: Console,
        backoff: Backoff,
    ) -> None:
        self._store = store
        self._host = host
        self._machines = machines
        self._saved = saved
        self._templates = templates
        self._links = links
        self._groups = groups
        self._events = events
        self._console = console
        self._backoff = backoff
        self._live: dict[int, Live] = {}
        self._of_service: dict[int, dict[int, Live]] = {}
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.on_stopped: Callable[[InstanceRow, Config], None] = lambda _row, _config: None
        """Called when an instance has stopped for good."""

    # Looking ------------------------------------------------------------------------------------

    def lock(self, instance_id: int) -> asyncio.Lock:
        """The lock of one instance; it exists for as long as somebody holds it."""
        return self._locks.setdefault(instance_id, asyncio.Lock())

    def live(self, instance_id: int) -> Live | None:
        """The live part of an instance, or None if its row is all there is."""
        return self._live.get(instance_id)

    def all_live(self) -> list[Live]:
        """Every instance that is live."""
        return list(self._live.values())

    def of_service(self, service_id: int) -> list[Live]:
        """Those that are live of one service group."""
        return list(self._of_service.get(service_id, {}).values())

    def state(self, row: InstanceRow) -> State:
        """The state of an instance now."""
        live = self._live.get(row.id)
        return row.state if live is None else live.state

    # Transitions that are asked for -------------------------------------------------------------

    async def start(self, row: InstanceRow, origin: Origin) -> State:
        """Begins to start an instance, and returns the state that it was in.

        One that is starting or running is left alone. Raises ItemError.
        """
        async with self.lock(row.id):
            live = self._live.get(row.id)
            if live is not None and live.state != "stopped":
                if live.state in ("starting", "running"):
                    return live.state
                raise _wrong_state(row, live.state, "start")
            row = self._current(row)
            if row.kind != "instance" or row.state not in ("stopped", "standby"):
                raise _wrong_state(row, row.state, "start")
            self._abort_restart(row.id)
            await self._start(row, origin)
            return row.state

    async def stop(self, row: InstanceRow, *, force: bool) -> tuple[State, State]:
        """Begins to stop an instance: the state it was in, and the one it is in now.

        There are no connections to drain before there is a proxy that holds them.
        """
        async with self.lock(row.id):
            live = self._live.get(row.id)
            if live is None:
                row = self._current(row)
                if row.state != "standby":
                    return row.state, row.state
                await self._store_state(row, "stopped", STOPPED_BY_USER)
                await self._store.snapshots.discard(row.id)
                return "standby", "stopped"
            previous = live.state
            self._abort_restart(row.id)
            if live.state == "stopped":
                self._forget(live)
                return previous, "stopped"
            reason = FORCED_BY_USER if force else STOPPED_BY_USER
            live.stopping_for = reason
            if live.state != "stopping" or force:
                self._set(live, "stopping", "api")
                live.settled.set()
                if live.vm is not None:
                    self._task(live.vm.stop(force=force, timeout_s=STOP_TIMEOUT_S))
            return previous, live.state

    async def suspend(
        self, row: InstanceRow, origin: Origin, *, drain_ms: int = 0
    ) -> tuple[State, State]:
        """Puts an instance into standby: the state it was in, and `standby`. Raises ItemError."""
        async with self.lock(row.id):
            live = self._live.get(row.id)
            if live is None or live.state != "running" or live.vm is None:
                state = self.state(self._current(row))
                if state == "standby":
                    return state, state
                raise _wrong_state(row, state, "suspend")
            live.wanted = False
            await self._links.park(row.uuid, live.link_generation, drain_ms)
            try:
                await self._put_down(live, origin, busy=True)
            except ItemError:
                self._links.go_on(row.uuid, live.link_generation)
                raise
            self._links.detach(row.uuid, live.link_generation, "stopped", parked=True)
            return "running", "standby"

    async def idle(self, row: InstanceRow, link_generation: int) -> str | None:
        """Puts a silent instance into standby; why it goes on, or None when that is durable.

        A wake that comes before the commit takes it back.
        """
        live = self._live.get(row.id)
        if live is not None:
            live.wanted = False
        async with self.lock(row.id):
            live = self._live.get(row.id)
            if live is None:
                return None
            if live.vm is None or live.state != "running":
                return f"it is {live.state}"
            if live.link_generation != link_generation:
                return "the link is of another generation"
            try:
                await self._put_down(live, "scale-to-zero", busy=False)
            except ItemError as error:
                return str(error)
            return None

    async def _put_down(self, live: Live, origin: Origin, *, busy: bool) -> None:
        """From running to standby, durably. Raises ItemError, and then it runs on or is lost."""
        row, vm = live.row, live.vm
        assert vm is not None  # noqa: S101 -- the caller looked
        if origin == "scale-to-zero" and not live.policy.stateful:
            await self._put_away(live)
            return
        within_s = STANDBY_S if busy else IDLE_S
        saved = await vm.standby(row.generation + 1, busy=busy, within_s=within_s)
        if live.wanted and not busy:
            await vm.go_on()
            raise BusyError("a request came meanwhile")
        config, updates = apply_pending(live.config, live.facts.updates)
        facts = msgspec.structs.replace(
            live.facts, stop_reason=SCALED_TO_ZERO, stopped_ms=now_ms(), updates=updates
        )
        wanted = with_documents(row, config, facts, "standby")
        try:
            live.row = await self._saved.commit(wanted, saved, image=live.config.image_digest)
        except ConflictError as error:
            live.stopping_for = LOST
            await vm.stop(force=True, timeout_s=0)
            self._links.detach(row.uuid, live.link_generation, "lost", parked=False)
            await self._lost(live)
            raise from_store(error, uuid=row.uuid, name=row.name) from error
        except StoreError as error:
            await vm.go_on()
            raise from_store(error, uuid=row.uuid, name=row.name) from error
        self._templates.stored(live, saved)
        await self._leave_standby(live, origin)

    async def _put_away(self, live: Live) -> None:
        """Standby of an instance without a state of its own: it begins anew at the next wake."""
        facts = msgspec.structs.replace(live.facts, stop_reason=SCALED_TO_ZERO, stopped_ms=now_ms())
        wanted = with_documents(live.row, live.config, facts, "standby")
        if live.row.state != "standby":
            live.row = await self._write(wanted, live.row)
        await self._leave_standby(live, "scale-to-zero")

    async def _leave_standby(self, live: Live, origin: Origin) -> None:
        """The state is safe: the process is free."""
        vm, live.vm = live.vm, None
        if vm is not None:
            await vm.release()
        self._set(live, "standby", origin)
        self._forget(live)

    async def checkpoint(self, live: Live) -> bool:
        """Commits the state of an instance that runs on; whether it was done. Raises ItemError."""
        async with self.lock(live.row.id):
            if self._live.get(live.row.id) is not live or live.state != "running":
                return False
            if live.vm is None:
                return False
            row = live.row
            saved = await live.vm.checkpoint(row.generation + 1, within_s=STANDBY_S)
            try:
                live.row = await self._saved.commit(row, saved, image=live.config.image_digest)
            except StoreError as error:
                raise from_store(error, uuid=row.uuid, name=row.name) from error
            live.saved_s = _loop_s()
            return True

    async def state_content(self, row: InstanceRow) -> tuple[Saved, str] | None:
        """The memory of an instance now, and as what it was stored; None if it has none."""
        async with self.lock(row.id):
            live = self._live.get(row.id)
            if live is not None:
                if live.state != "running" or live.vm is None:
                    raise ItemError(
                        Code.WRONG_STATE, f"Cannot branch from VM in state '{live.state}'"
                    )
                generation = live.row.generation + 1
                saved = await live.vm.checkpoint(generation, within_s=STANDBY_S)
                return saved, f"{row.uuid}/{generation}"
            row = self._current(row)
            if row.state != "standby" or self._store.snapshots.find(row.id) is None:
                return None
            return await self.saved_of(row)

    async def saved_of(self, row: InstanceRow) -> tuple[Saved, str]:
        """The committed state of a row, and as what it was stored. Raises StoreError."""
        state = await self._saved.read(row)
        origin = state.origin or f"{row.uuid}/{row.generation}"
        return Saved(state.delta or b"", state.template, state.warm), origin

    # Waking -------------------------------------------------------------------------------------

    async def wake(self, row: InstanceRow) -> Live:
        """An instance that runs, started from standby if need be. Raises ItemError.

        `row` was read just now. Nothing is written on the way from a saved state.
        """
        live = self._live.get(row.id)
        lock = self.lock(row.id)
        waits = lock.locked()
        if live is not None:
            if live.state == "running" and not waits:
                return live
            live.wanted = True
        async with lock:
            live = self._live.get(row.id)
            if live is None:
                if waits:
                    row = self._current(row)
                if row.state != "standby":
                    raise _wrong_state(row, row.state, "wake")
                await self._start(row, "proxy")
                live = self._live.get(row.id)
        if live is None:
            raise ItemError(Code.FAILED, "The instance ended while it started")
        if live.state == "starting":
            await asyncio.wait_for(live.settled.wait(), READY_S + STANDBY_S)
        if live.state != "running":
            raise ItemError(Code.WRONG_STATE, f"The instance is {live.state}")
        return live

    async def retire(self, row: InstanceRow) -> InstanceRow:
        """Ends whatever is live of an instance, for its deletion, and gives its last row."""
        async with self.lock(row.id):
            live = self._live.get(row.id)
            if live is not None:
                self._abort_restart(row.id)
                live.stopping_for = FORCED_BY_USER
                if live.vm is not None:
                    await live.vm.stop(force=True, timeout_s=0)
        while live is not None and self._live.get(row.id) is live and live.vm is not None:
            with self._events.watch(row.uuid) as changed:
                if live.vm is not None and self._live.get(row.id) is live:
                    await changed.wait()
        async with self.lock(row.id):
            rest = self._leave(row)
            self._console.forget(row.id)
            return self._current(row) if rest is None else rest.row

    # Coming back --------------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Takes over the VM processes of an earlier torpord; those it left without one are lost.

        Must be complete before anything is started: no instance may run twice.
        """
        listeners: dict[str, _Listener] = {}

        def listener(uuid: str) -> "_Listener | None":
            row = self._store.instances.by_uuid(uuid)
            if row is None or row.state in ("stopped", "template", "checkpoint", "deleted"):
                return None
            live = Live(row, config_of(row.config), facts_of(row.facts), "running")
            live.woken = row.state == "standby"
            listeners[uuid] = _Listener(self, live)
            return listeners[uuid]

        for found in await self._host.adopt(listener):
            live = listeners[found.instance].live
            live.vm, live.link_generation = found.process, found.generation
            live.base = found.template
            if live.base is not None:
                self._store.bases.pin(live.base.id)
            self._enter(live)
            if not await self._go_on(found, live.row):
                self._forget(live)
                continue
            if live.row.service_id is not None:
                live.group = self._groups.announce(live.row.service_id)
            live.settled.set()
            if live.row.state == "starting":
                self._task(self._record_running(live))
            result = listeners[found.instance].result
            if result is not None:
                self._task(self._ended(live, result))
        for row in self._store.instances.in_motion():
            if row.id not in self._live:
                await self._lost(Live(row, config_of(row.config), facts_of(row.facts), row.state))

    async def _go_on(self, found: Found, row: InstanceRow) -> bool:
        """Whether a process that was left runs on as its instance; if not, it is dead."""
        try:
            if _is_current(found, row):
                if found.is_stopped:
                    # Its state was not committed: that is taken back.
                    await found.process.go_on()
                return True
        except ItemError:
            pass  # it has just ended
        await found.process.stop(force=True, timeout_s=0)
        return False

    async def close(self) -> None:
        """Leaves everything as it is, for the next torpord to find."""
        for live in self._live.values():
            if live.restart is not None:
                live.restart.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What happens by itself ---------------------------------------------------------------------

    async def _start(self, row: InstanceRow, origin: Origin, attempt: int = 0) -> None:
        config, facts = config_of(row.config), facts_of(row.facts)
        live = Live(row, config, facts, "starting", attempt=attempt)
        live.woken = row.state == "standby"
        try:
            state = await self._saved.state(row, config)
            if state is None:
                machine = self._machines.of(row, config)
                state, live.template_key = self._templates.begin_with(row, machine)
        except StoreError as error:
            raise from_store(error, uuid=row.uuid, name=row.name) from error
        except ItemError as error:
            if error.code is Code.NOT_FOUND:
                reason, code = NO_IMAGE
                await self._store_state(row, row.state, reason, stop_code=code)
            self._failed_to_start(row, origin, error)
            raise
        if not live.woken:
            live.facts = msgspec.structs.replace(
                facts,
                start_count=facts.start_count + 1,
                restart_count=facts.restart_count + (attempt > 0),
                started_ms=now_ms(),
                stop_reason=None,
                stop_code=None,
                exit_code=None,
            )
            live.row = await self._write(with_documents(row, config, live.facts, "starting"), row)
        self._enter(live)
        self._announce(live.row, row.state, "starting", origin)
        try:
            if state is None:
                await self._boot(live)
            else:
                await self._restore(live, state)
        except (ItemError, OSError) as error:
            if self._live.get(row.id) is live:
                self._forget(live)
            if not live.woken:
                await self._store_state(live.row, "stopped", LOST)
            failure = error if isinstance(error, ItemError) else _host_failed(row, error)
            self._failed_to_start(row, origin, failure)
            raise failure from error

    async def _boot(self, live: Live) -> None:
        machine = self._machines.of(live.row, live.config)
        pair = self._links.pair()
        near = None if pair is None else pair[0]
        live.vm = await self._host.boot(machine, _Listener(self, live), near)
        self._attached(live, pair, resumed=False)
        if live.row.service_id is None and live.template_key is None:
            # Nobody waits for it to listen: it runs as soon as it is started.
            self._ready(live)
        else:
            self._task(self._ready_in_time(live, live.vm))

    async def _restore(self, live: Live, state: SavedState) -> None:
        row = live.row
        live.base = state.template
        self._store.bases.pin(state.template.id)
        pair = self._links.pair()
        near, far = (None, None) if pair is None else pair
        hostname = live.config.hostname or row.name[:63]
        try:
            live.vm = await self._host.restore(
                Identity(row.uuid, hostname, row.generation), state, _Listener(self, live), near
            )
        except BaseException:
            if far is not None:
                far.close()
            raise
        self._attached(live, pair, resumed=live.woken and state.delta is not None)
        if live.state == "starting":
            self._ready(live)

    def _attached(
        self,
        live: Live,
        pair: "tuple[socket.socket, socket.socket] | None",
        *,
        resumed: bool,
    ) -> None:
        """Hands the far end of a link to the proxy."""
        live.link_generation = live.row.generation
        if pair is None:
            return
        row, policy = live.row, live.policy
        # A VM that a template is made of is gone then: no request may go there.
        if row.service_id is not None and live.template_key is None:
            alone = len(self._of_service.get(row.service_id, ())) <= 1
            live.group = self._groups.announce(row.service_id, anew=alone)
        what = Attachment(
            row.uuid,
            row.name,
            row.generation,
            live.group,
            resumed,
            policy.policy,
            policy.cooldown_time_ms,
        )
        self._links.attach(what, pair[1])

    async def attach_again(self, live: Live) -> None:
        """A proxy that was started anew has no link to this VM: it gets another one."""
        async with self.lock(live.row.id):
            if self._live.get(live.row.id) is not live or live.vm is None:
                return
            pair = self._links.pair()
            if pair is None:
                return
            try:
                await live.vm.link(pair[0])
            except ItemError:
                pair[1].close()
                return
            self._attached(live, pair, resumed=False)

    async def _ready_in_time(self, live: Live, vm: VmProcess) -> None:
        """A program that listens nowhere is ready after READY_S all the same."""
        await asyncio.sleep(READY_S)
        async with self.lock(live.row.id):
            if self._live.get(live.row.id) is not live or live.vm is not vm:
                return
            if live.state != "starting":
                return
            try:
                if live.template_key is not None:
                    saved = await vm.standby(0, busy=True, within_s=STANDBY_S)
                    await self._become_clone(live, saved.content)
                    return
            except BusyError:
                live.template_key = None
            except (ItemError, StoreError) as error:
                await self._failed(live, error)
                return
            self._ready(live)

    async def _at_ready(self, live: Live) -> None:
        """A VM that was started cold has stopped, because its program is ready."""
        async with self.lock(live.row.id):
            if self._live.get(live.row.id) is not live or live.vm is None:
                return
            try:
                if live.state == "starting" and live.template_key is not None:
                    await self._become_clone(live, await live.vm.template())
                    return
                await live.vm.go_on()
            except (ItemError, StoreError) as error:
                await self._failed(live, error)
                return
            self._ready(live)

    async def _failed(self, live: Live, error: TorporError) -> None:
        """It cannot go on: the log says why, and what follows is as for any other end."""
        self._console.output(live.row.id, f"torpor: {error}\n".encode())
        if live.vm is not None:
            await live.vm.stop(force=True, timeout_s=0)
        else:
            await self._lost(live)

    async def _become_clone(self, live: Live, content: bytes) -> None:
        """Makes a template of the VM as it is now, and goes on as a clone of that."""
        row, vm = live.row, live.vm
        key, live.template_key = live.template_key, None
        assert vm is not None  # noqa: S101 -- the caller looked
        template = await self._templates.add(row, content, live.config.image_digest, key)
        live.vm = None
        await vm.release()
        self._links.detach(row.uuid, live.link_generation, "lost", parked=False)
        await self._restore(live, SavedState(template, None))

    def _ready(self, live: Live) -> None:
        if live.state != "starting":
            return
        self._set(live, "running", "guest")
        live.settled.set()
        if live.woken:
            return
        started_us = (now_ms() - live.facts.started_ms) * 1000
        live.facts = msgspec.structs.replace(live.facts, boot_time_us=started_us)
        self._task(self._record_running(live))

    async def _record_running(self, live: Live) -> None:
        async with self.lock(live.row.id):
            if self._live.get(live.row.id) is live and live.state == "running":
                await self._write_eventually(live, "running")

    async def _ended(self, live: Live, result: Exit) -> None:
        async with self.lock(live.row.id):
            if self._live.get(live.row.id) is not live:
                return
            live.vm = None
            self._unpin(live)
            why: Why = "stopped" if live.stopping_for is not None else "lost"
            self._links.detach(live.row.uuid, live.link_generation, why, parked=False)
            await self._console.flush()
            if result.kind == "lost" and live.stopping_for is None:
                await self._lost(live)
                return
            live.facts = facts_of_end(live, result)
            live.config, updates = apply_pending(live.config, live.facts.updates)
            live.facts = msgspec.structs.replace(live.facts, updates=updates)
            live.woken = False
            await self._write_eventually(live, "stopped")
            await self._store.snapshots.discard(live.row.id)
            asked_for = live.stopping_for is not None
            if not asked_for and wants_restart(live.config.restart_policy, result):
                healthy = _loop_s() - live.began_s >= self._backoff.healthy_s
                self._plan_restart(live, 1 if healthy else live.attempt + 1)
                self._set(live, "stopped", "guest")
                return
            self._set(live, "stopped", "api" if asked_for else "guest")
            self._forget(live)
            self.on_stopped(live.row, live.config)

    async def _lost(self, live: Live) -> None:
        """The VM process is gone without a word: back to the last committed state, if any."""
        live.vm = None
        committed = self._store.snapshots.find(live.row.id) is not None
        live.facts = msgspec.structs.replace(
            live.facts, stop_reason=LOST, stop_code=None, exit_code=None, stopped_ms=now_ms()
        )
        await self._write_eventually(live, "standby" if committed else "stopped")
        self._set(live, live.row.state, "system")
        self._forget(live)
        if not committed and live.config.restart_policy != "never":
            self._enter(live)
            self._plan_restart(live, live.attempt + 1)

    def _plan_restart(self, live: Live, attempt: int) -> None:
        delay_s = self._backoff.delay_s(attempt)
        live.attempt, live.restart_at_ms = attempt, now_ms() + int(delay_s * 1000)
        live.stopping_for = None
        live.restart = self._task(self._restart(live, attempt, delay_s))

    async def _restart(self, live: Live, attempt: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        async with self.lock(live.row.id):
            if self._live.get(live.row.id) is not live or live.state != "stopped":
                return
            live.restart = None
            try:
                await self._start(self._current(live.row), "restart", attempt)
            except ItemError:
                if self._live.get(live.row.id) in (live, None):
                    self._enter(live)
                    live.row = self._current(live.row)
                    self._plan_restart(live, attempt + 1)

    # Helpers ------------------------------------------------------------------------------------

    def _current(self, row: InstanceRow) -> InstanceRow:
        found = self._store.instances.by_id(row.id)
        if found is None:
            raise ItemError(
                Code.NOT_FOUND, f"No instance with uuid '{row.uuid}'", uuid=row.uuid, name=row.name
            )
        return found

    async def edit(
        self, row: InstanceRow, change: Callable[[InstanceRow, Config, Facts, bool], InstanceRow]
    ) -> InstanceRow:
        """Writes what `change(row, config, facts, live)` makes of an instance. Raises ItemError."""
        async with self.lock(row.id):
            live = self._live.get(row.id)
            current = self._current(row) if live is None else live.row
            config, facts = config_of(current.config), facts_of(current.facts)
            if live is not None:
                config, facts = live.config, live.facts
            written = await self._write(change(current, config, facts, live is not None), current)
            if live is not None:
                live.row = written
                live.config, live.facts = config_of(written.config), facts_of(written.facts)
            return written

    def _set(self, live: Live, state: State, origin: Origin) -> None:
        previous, live.state = live.state, state
        self._announce(live.row, previous, state, origin)

    def _announce(self, row: InstanceRow, previous: State, state: State, origin: Origin) -> None:
        if not self._events.subscribed():
            self._events.notify(row.uuid)
            return
        owner = self._store.owners.by_id(row.owner_id).uuid
        data = {"prev": previous, "new": state}
        self._events.publish(
            Event("vm.state_change", now_ms(), row.uuid, owner, row.tags, origin, data)
        )

    def _failed_to_start(self, row: InstanceRow, origin: Origin, error: ItemError) -> None:
        owner = self._store.owners.by_id(row.owner_id).uuid
        data = {"state": row.state, "error": str(error)}
        self._events.publish(
            Event("vm.start_failed", now_ms(), row.uuid, owner, row.tags, origin, data)
        )

    def _abort_restart(self, instance_id: int) -> None:
        live = self._live.get(instance_id)
        if live is not None and live.restart is not None:
            live.restart.cancel()
            live.restart = None
            if live.state == "stopped":
                self._leave(live.row)

    def _enter(self, live: Live) -> None:
        self._live[live.row.id] = live
        if live.row.service_id is not None:
            self._of_service.setdefault(live.row.service_id, {})[live.row.id] = live

    def _leave(self, row: InstanceRow) -> Live | None:
        if row.service_id is not None:
            mine = self._of_service.get(row.service_id, {})
            mine.pop(row.id, None)
            if not mine:
                self._of_service.pop(row.service_id, None)
        return self._live.pop(row.id, None)

    def _forget(self, live: Live) -> None:
        live.settled.set()
        self._unpin(live)
        if self._live.get(live.row.id) is live:
            self._leave(live.row)
        self._events.notify(live.row.uuid)

    def _unpin(self, live: Live) -> None:
        if live.base is not None:
            self._store.bases.unpin(live.base.id)
            live.base = None

    async def _store_state(
        self, row: InstanceRow, state: State, reason: int, *, stop_code: int | None = None
    ) -> InstanceRow:
        facts = msgspec.structs.replace(
            facts_of(row.facts), stop_reason=reason, stop_code=stop_code, stopped_ms=now_ms()
        )
        wanted = with_documents(row, config_of(row.config), facts, state)
        written = await self._write(wanted, row)
        if state != row.state:
            self._announce(written, row.state, state, "api")
        return written

    async def _write(self, wanted: InstanceRow, row: InstanceRow) -> InstanceRow:
        (written,) = await self._store.instances.update([wanted])
        if isinstance(written, StoreError):
            raise from_store(written, uuid=row.uuid, name=row.name) from written
        return written

    async def _write_eventually(self, live: Live, state: State) -> None:
        """Records what has happened already; a full disk can only delay it."""
        while True:
            wanted = with_documents(live.row, live.config, live.facts, state)
            try:
                live.row = await self._write(wanted, live.row)
            except StoreError:
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _task(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Listener:
    """Passes what a VM process tells on to its instance."""

    def __init__(self, lifecycle: Lifecycle, live: Live) -> None:
        self.live = live
        self.result: Exit | None = None
        self._lifecycle = lifecycle

    def ready(self) -> None:
        work = self._lifecycle._at_ready(self.live)  # noqa: SLF001, RUF100 -- one idea, two classes
        self._lifecycle._task(work)  # noqa: SLF001, RUF100

    def output(self, data: bytes) -> None:
        self._lifecycle._console.output(self.live.row.id, data)  # noqa: SLF001, RUF100
        self._lifecycle._events.notify(self.live.row.uuid)  # noqa: SLF001, RUF100

    def ended(self, result: Exit) -> None:
        self.result = result
        self._lifecycle._task(self._lifecycle._ended(self.live, result))  # noqa: SLF001, RUF100


def _loop_s() -> float:
    return asyncio.get_running_loop().time()


def _is_current(found: Found, row: InstanceRow) -> bool:
    """Whether a process that was left has the newest state of its instance.

    It has not if it never came from this store, or if what it was stopped for was committed: then
    it is only waiting for its reset.
    """
    return found.generation <= row.generation and (
        found.stopped_for is None or found.stopped_for > row.generation
    )


def _wrong_state(row: InstanceRow, state: State, verb: str) -> ItemError:
    return ItemError(
        Code.WRONG_STATE,
        f"Cannot {verb} an instance in state '{state}'",
        uuid=row.uuid,
        name=row.name,
    )


def _host_failed(row: InstanceRow, error: OSError) -> ItemError:
    return ItemError(
        Code.FAILED, f"The VM process could not be started: {error}", uuid=row.uuid, name=row.name
    )

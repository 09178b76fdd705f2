"""The states of instances and every way from one to another.

    stopped ──start──▶ starting ──ready──▶ running ──stop──▶ draining ─▶ stopping ─▶ stopped
                          ▲                   │                                        │
    standby ──wake────────┘                   ├──suspend──▶ standby                    │
                                              └──program ends──▶ stopped ──policy──▶ starting

An instance that is stopped or in standby is a row of the store and nothing else. One that is
neither has a `Live` here, whose state counts. A wake writes nothing: until the next commit the row
says `standby`, which is what is true if everything dies at once. A row says `starting` as well
while a restart is waited for: whatever torpord there is then begins that start.

Lock order: an instance's lock (`LiveSet.lock`) is held around every change of its state, and
never two instances' at once but by `replace`, in the order of their ids. Callbacks from VM
processes take no lock; they start a task.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from torpor.controller.clock import steady_ms
from torpor.controller.console import Console
from torpor.controller.errors import BusyError, Code, ItemError, from_store
from torpor.controller.events import Events, Origin, now_ms
from torpor.controller.groups import ServiceGroups
from torpor.controller.links import NO_TRAFFIC, Links, Why
from torpor.controller.live import Live, facts_of_end
from torpor.controller.live_set import LiveSet
from torpor.controller.machines import Machines
from torpor.controller.model import (
    FORCED_BY_USER,
    KILLED_FOR_USER,
    LOST,
    SCALED_TO_ZERO,
    STOPPED_BY_USER,
    Config,
    Facts,
    config_of,
    facts_of,
    requests_left,
    with_documents,
)
from torpor.controller.restart import Backoff, wants_restart
from torpor.controller.saved import SavedStates
from torpor.controller.starting import READY_S, STANDBY_S, Listener, Starter
from torpor.controller.templates import Templates
from torpor.controller.updates import apply_pending
from torpor.controller.vm import Exit, Found, Saved, VmHost, VmProcess
from torpor.serverlog import note
from torpor.store import (
    ConflictError,
    Content,
    InstanceRow,
    NoSpaceError,
    State,
    Store,
    StoreError,
)
from torpor.tasks import Tasks

STOP_TIMEOUT_S = 10.0
STOP_DRAIN_MAX_MS = 3_600_000
"""How long what is in flight may take at most."""
STOPPING: tuple[State, ...] = ("draining", "stopping")
"""What a row says of an instance that somebody has asked to stop."""
SETTLE_S = 2.0
"""How long a start of torpord waits until what it found is written down."""
UNLINKED_S = 1.0
"""How long a VM without a link may take to end by itself."""
WAKES_MAX = 8
"""Of one instance, before whoever waits for it is told to come again."""
IDLE_S = 0.5
"""As STANDBY_S, for a VM that is silent: if it is busy after all, it is asked again later."""


class Lifecycle:
    """The transitions of all instances."""

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
        timer_interval_s: float,
    ) -> None:
        self.lives = self._lives = LiveSet(store, events)
        """Those that are live."""
        self._tasks = Tasks()
        self._starter = Starter(
            store,
            self._lives,
            host,
            machines,
            saved,
            templates,
            links,
            groups,
            events,
            console,
            self._tasks,
            ended=self._ended,
            lost=self._lost,
        )
        self.attach_again = self._starter.attach_again
        self._store = store
        self._host = host
        self._saved = saved
        self._templates = templates
        self._links = links
        self._groups = groups
        self._events = events
        self._console = console
        self._backoff = backoff
        self._timer_interval_ms = int(timer_interval_s * 1000)
        self.on_timer: Callable[[], None] = lambda: None
        """Called when an instance was put down that is to be woken for a timer of its own."""

    def refuse_starts(self) -> None:
        """Nothing is started or woken any more: the server is about to end."""
        self._starter.refuses = True

    # Transitions that are asked for -------------------------------------------------------------

    async def start(self, row: InstanceRow, origin: Origin, *, created: bool = False) -> State:
        """Begins to start an instance, and returns the state that it was in.

        One that is starting or running is left alone. `created`: it was just recorded, as
        `starting`. Raises ItemError.
        """
        async with self._lives.lock(row.id):
            live = self._lives.get(row.id)
            if live is not None and live.state != "stopped":
                if live.state in ("starting", "running"):
                    return live.state
                raise _wrong_state(row, live.state, "start")
            row = self._lives.current(row)
            if created and row.state == "starting":
                await self._begin(row, origin, 0, recorded=True)
                return "stopped"
            waits = live is not None and row.state == "starting"
            if row.kind != "instance" or not (waits or row.state in ("stopped", "standby")):
                raise _wrong_state(row, row.state, "start")
            self._abort_restart(row.id)
            await self._begin(row, origin, 0 if live is None else live.attempt)
            return "stopped" if waits else row.state

    async def _begin(
        self, row: InstanceRow, origin: Origin, attempt: int, *, recorded: bool = False
    ) -> None:
        try:
            await self._starter.start(row, origin, recorded=recorded)
        except (ItemError, StoreError):
            self._begins_later(row, attempt)
            raise

    def _begins_later(self, row: InstanceRow, attempt: int) -> None:
        """What could not be written down of a start holds: its row says that it is to start."""
        found = self._store.instances.by_id(row.id)
        if found is None or found.state != "starting" or self._lives.get(row.id) is not None:
            return
        live = Live(found, config_of(found.config), facts_of(found.facts), "stopped")
        self._lives.enter(live)
        self._plan_restart(live, attempt + 1)

    async def stop(
        self,
        row: InstanceRow,
        *,
        force: bool,
        drain_ms: int = 0,
        timeout_s: float = STOP_TIMEOUT_S,
    ) -> tuple[State, State]:
        """Begins to stop an instance: the state it was in, and the one it is in now.

        Unless `force`, nothing new is sent to it, what is in flight may take `drain_ms`, and then
        its program `timeout_s` behind a SIGTERM.
        """
        async with self._lives.lock(row.id):
            live = self._lives.get(row.id)
            if live is None:
                row = self._lives.current(row)
                if row.state != "standby":
                    return row.state, row.state
                await self._lives.write_state(row, "stopped", STOPPED_BY_USER)
                await self._store.snapshots.discard(row.id)
                return "standby", "stopped"
            previous = live.state
            self._abort_restart(row.id)
            if live.state == "stopped":
                await self._lives.write_eventually(live, "stopped")
                self._lives.forget(live)
                return previous, "stopped"
            live.stopping_for = FORCED_BY_USER if force else STOPPED_BY_USER
            live.begins_anew = None
            live.settled.set()
            if force:
                self._terminate(live, force=True)
            elif drain_ms and previous == "running":
                await self._record_stop(live, "draining")
                self._tasks.start(self._drained(live, drain_ms, timeout_s))
            elif previous != "stopping" and not (drain_ms and previous == "draining"):
                await self._record_stop(live, "stopping")
                self._tasks.start(self._links.drain(row.uuid, live.link_generation, 0))
                self._terminate(live, timeout_s=timeout_s)
            return previous, live.state

    async def _record_stop(self, live: Live, state: State) -> None:
        """Written down, so that the next torpord goes on with it; a full disk stops no stop."""
        with contextlib.suppress(NoSpaceError):
            wanted = with_documents(live.row, live.config, live.facts, state)
            live.row = await self._lives.write(wanted, live.row)
        self._lives.set(live, state, "api")

    async def _drained(self, live: Live, drain_ms: int, timeout_s: float) -> None:
        """Stops an instance when nothing is in flight any more, or the time is over."""
        await self._links.drain(live.row.uuid, live.link_generation, drain_ms)
        async with self._lives.lock(live.row.id):
            if self._lives.has(live) and live.state == "draining":
                self._terminate(live, timeout_s=timeout_s)

    def _terminate(
        self, live: Live, *, force: bool = False, timeout_s: float = STOP_TIMEOUT_S
    ) -> None:
        if live.state != "stopping":
            self._lives.set(live, "stopping", "api")
        if live.vm is not None:
            self._tasks.start(live.vm.stop(force=force, timeout_s=timeout_s))

    async def put_away(self, live: Live, *, drain_ms: int, timeout_s: float) -> None:
        """Ends the VM of an instance that keeps no memory, since the server ends; as `stop` does.

        It begins anew: with the next request, or where none wakes it with the next torpord.
        """
        async with self._lives.lock(live.row.id):
            if not self._lives.has(live) or live.state not in ("starting", "running"):
                return
            sleeps = live.state == "running" and live.policy.policy != "off"
            live.begins_anew = "standby" if sleeps else "starting"
            live.stopping_for = SCALED_TO_ZERO
            # Written down first: the next torpord does not take it for lost.
            await self._lives.write_eventually(live, live.begins_anew)
            live.settled.set()
            self._lives.set(live, "draining", "system")
        await self._drained(live, drain_ms, timeout_s)
        await self._seen_dead(live)

    async def used_up(self, row: InstanceRow) -> None:
        """Stops an instance that takes no more requests, when those in flight are over.

        It is deleted behind that. If it may have more after all, the proxy is told so.
        """
        live = self._lives.get(row.id)
        if live is None:
            return
        if requests_left(live.config, live.counted()) != 0:
            self._links.allow(
                row.uuid, live.link_generation, requests_left(live.config, live.facts)
            )
            self._links.go_on(row.uuid, live.link_generation)
            return
        await self._settled(live)
        await self.stop(live.row, force=False, drain_ms=STOP_DRAIN_MAX_MS)

    async def suspend(
        self, row: InstanceRow, origin: Origin, *, drain_ms: int = 0
    ) -> tuple[State, State]:
        """Puts an instance into standby: the state it was in, and `standby`. Raises ItemError."""
        async with self._lives.lock(row.id):
            live = self._lives.get(row.id)
            if live is None or live.state != "running" or live.vm is None:
                state = self._lives.state(self._lives.current(row))
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

    async def replace(
        self,
        former: InstanceRow,
        new: InstanceRow,
        write: Callable[[InstanceRow, InstanceRow], Awaitable[tuple[InstanceRow, InstanceRow]]],
    ) -> int | None:
        """Gives the place of `former` in its group to `new`, by what `write` makes of their rows.

        From then on nothing new is sent to `former`; where there may be something in flight the
        generation of its link comes back. Raises ItemError or StoreError, and then nothing has
        changed.
        """
        first, second = sorted((former.id, new.id))
        async with self._lives.lock(first), self._lives.lock(second):
            old, young = self._lives.get(former.id), self._lives.get(new.id)
            rows = [
                self._lives.current(row) if live is None else live.row
                for row, live in ((former, old), (new, young))
            ]
            serving = self._serving(former)
            if serving is not None:
                await self._links.drain(former.uuid, serving.link_generation, 0)
            if old is not None and old.vm is not None:
                # Written down as for a stop: the next torpord goes on with that.
                rows[0] = msgspec.structs.replace(rows[0], state="draining")
            try:
                written = await write(rows[0], rows[1])
            except BaseException:
                if serving is not None:
                    self._links.go_on(former.uuid, serving.link_generation)
                raise
            for live, row in zip((old, young), written, strict=True):
                if live is not None:
                    self._lives.move(live, row)
                    live.config, live.facts = config_of(row.config), facts_of(row.facts)
            if young is not None and young.vm is not None and young.row.service_id is not None:
                young.group = self._groups.announce(young.row.service_id, anew=True)
                if young.group is not None:
                    self._links.join(young.row.uuid, young.link_generation, young.group)
            if serving is None:
                return None
            self._lives.set(serving, "draining", "api")
            return serving.link_generation

    def _serving(self, row: InstanceRow) -> Live | None:
        """An instance that has a VM which takes requests."""
        live = self._lives.get(row.id)
        if live is None or live.vm is None or live.state != "running":
            return None
        return live

    async def idle(self, row: InstanceRow, link_generation: int) -> str | None:
        """Puts a silent instance into standby; why it goes on, or None when that is durable.

        A wake that comes before the commit takes it back.
        """
        live = self._lives.get(row.id)
        if live is not None:
            live.wanted = False
        async with self._lives.lock(row.id):
            live = self._lives.get(row.id)
            if live is None:
                return None
            if live.vm is None or live.state != "running":
                return f"it is {live.state}"
            if live.link_generation != link_generation:
                return "the link is of another generation"
            try:
                await self._put_down(live, "scale-to-zero", busy=False)
            except (ItemError, StoreError) as error:
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
            live.counted(), stop_reason=SCALED_TO_ZERO, stopped_ms=now_ms(), updates=updates
        )
        wanted = with_documents(row, config, facts, "standby")
        # A user's suspend is for as long as the user likes.
        wake_ms = self._goes_on_ms(live) if origin == "system" else self._timer_of(live, saved)
        try:
            live.row = await self._saved.commit(
                wanted, saved, image=live.config.image_digest, wake_ms=wake_ms
            )
        except ConflictError as error:
            await self._give_up(live, vm)
            raise from_store(error, uuid=row.uuid, name=row.name) from error
        except StoreError as error:
            await vm.go_on()
            raise from_store(error, uuid=row.uuid, name=row.name) from error
        self._templates.stored(live, saved)
        await self._leave_standby(live, origin)
        if wake_ms is not None:
            self.on_timer()

    def _goes_on_ms(self, live: Live) -> int | None:
        """When one whose VM ends though it ran is to be woken: at once, if it never sleeps."""
        return 0 if live.policy.policy == "off" else None

    def _timer_of(self, live: Live, saved: Saved) -> int | None:
        """When an instance that is put down is to be woken for a timer of its own."""
        if not live.policy.wake_on_timer or saved.next_deadline_ns is None:
            return None
        left_ms = -(-saved.next_deadline_ns // 1_000_000)
        return steady_ms() + max(left_ms, self._timer_interval_ms)

    async def _put_away(self, live: Live) -> None:
        """Standby of an instance without a state of its own: it begins anew at the next wake."""
        facts = msgspec.structs.replace(
            live.counted(), stop_reason=SCALED_TO_ZERO, stopped_ms=now_ms()
        )
        wanted = with_documents(live.row, live.config, facts, "standby")
        if live.row.state != "standby" or live.traffic.requests:
            live.row = await self._lives.write(wanted, live.row)
        if self._store.snapshots.find(live.row.id) is not None:  # of when it was stateful
            await self._store.snapshots.discard(live.row.id)
        await self._leave_standby(live, "scale-to-zero")

    async def _leave_standby(self, live: Live, origin: Origin) -> None:
        """The state is safe: the process is free."""
        vm, live.vm = live.vm, None
        if vm is not None:
            await vm.release()
        self._lives.set(live, "standby", origin)
        self._lives.forget(live)

    async def checkpoint(self, live: Live) -> bool:
        """Commits the state of an instance that runs on; whether it was done. Raises ItemError."""
        async with self._lives.lock(live.row.id):
            if not self._lives.has(live) or live.state != "running":
                return False
            if live.vm is None:
                return False
            row = live.row
            if not await live.vm.has_changed(row.generation):
                live.saved_s = _loop_s()
                return False
            saved = await self._checkpointed(live.vm, row.generation + 1)
            try:
                live.row = await self._saved.commit(
                    row, saved, image=live.config.image_digest, wake_ms=self._goes_on_ms(live)
                )
            except StoreError as error:
                raise from_store(error, uuid=row.uuid, name=row.name) from error
            live.saved_s = _loop_s()
            return True

    async def _checkpointed(self, vm: VmProcess, generation: int) -> Saved:
        """Its state; of one that is silent at its idle point, so that it is known not to change."""
        try:
            return await vm.checkpoint(generation, busy=False, within_s=IDLE_S)
        except BusyError:
            return await vm.checkpoint(generation, busy=True, within_s=STANDBY_S)

    async def state_content(self, row: InstanceRow) -> tuple[Saved, str] | None:
        """The memory of an instance now, and as what it was stored; None if it has none."""
        async with self._lives.lock(row.id):
            live = self._lives.get(row.id)
            if live is not None:
                if live.state != "running" or live.vm is None:
                    raise ItemError(
                        Code.WRONG_STATE, f"Cannot branch from VM in state '{live.state}'"
                    )
                generation = live.row.generation + 1
                saved = await live.vm.checkpoint(generation, busy=True, within_s=STANDBY_S)
                return saved, f"{row.uuid}/{generation}"
            row = self._lives.current(row)
            if row.state != "standby" or self._store.snapshots.find(row.id) is None:
                return None
            return await self.saved_of(row)

    async def saved_of(self, row: InstanceRow) -> tuple[Saved, str]:
        """The committed state of a row, and as what it was stored. Raises StoreError."""
        state = await self._saved.read(row)
        origin = state.origin or f"{row.uuid}/{row.generation}"
        return Saved(state.delta or Content(b""), state.template, state.warm), origin

    # Waking -------------------------------------------------------------------------------------

    async def wake(
        self,
        row: InstanceRow,
        origin: Origin = "proxy",
        soon: Callable[[Live], None] | None = None,
    ) -> Live:
        """An instance that runs, started from standby if need be. Raises ItemError.

        `row` was read just now. Nothing is written on the way from a saved state. `soon` is as in
        `Starter.start`.
        """
        for _ in range(WAKES_MAX):
            live = await self._wakened(row, origin, soon)
            if live.state == "starting":
                await asyncio.wait_for(live.settled.wait(), READY_S + STANDBY_S)
            if live.state == "running":
                return live
            if live.state != "standby":
                raise ItemError(Code.WRONG_STATE, f"The instance is {live.state}")
            # It has served somebody else already, and gone to sleep behind them.
            row = self._lives.current(row)
        raise BusyError("The instance goes to standby as soon as it runs")

    async def _wakened(
        self, row: InstanceRow, origin: Origin, soon: Callable[[Live], None] | None
    ) -> Live:
        """An instance that was started, or runs."""
        live = self._lives.get(row.id)
        # Also where it is held by nobody just now, and somebody has waited for it for longer.
        waits = self._lives.is_claimed(row.id)
        lock = self._lives.lock(row.id)
        if live is not None:
            if live.is_unlinked:
                await self._seen_dead(live)
                waits = True  # its row is another one by now
            elif live.state == "running" and not waits:
                return live
            live.wanted = True
        async with lock:
            live = self._lives.get(row.id)
            if live is None:
                if waits:
                    row = self._lives.current(row)
                if row.state != "standby":
                    raise _wrong_state(row, row.state, "wake")
                await self._starter.start(row, origin, soon=soon)
                live = self._lives.get(row.id)
        if live is None:
            raise ItemError(Code.FAILED, "The instance ended while it started")
        return live

    async def retire(
        self,
        row: InstanceRow,
        remove: Callable[[InstanceRow], Awaitable[None]],
        *,
        unless_live: bool = False,
    ) -> InstanceRow:
        """Ends whatever is live of an instance, has its last row removed, and gives that.

        Nobody can start it in between. Raises ItemError, also with `unless_live` if it is that.
        """
        while True:
            async with self._lives.lock(row.id):
                live = self._lives.get(row.id)
                if live is not None and unless_live:
                    raise _wrong_state(row, live.state, "remove")
                if live is None or live.vm is None:
                    self._abort_restart(row.id)
                    rest = self._lives.leave(row)
                    self._console.forget(row.id)
                    last = self._lives.current(row) if rest is None else rest.row
                    try:
                        await remove(last)
                    except (ItemError, StoreError):
                        self._begins_later(row, 0 if live is None else live.attempt)
                        raise
                    return last
                self._abort_restart(row.id)
                live.stopping_for = FORCED_BY_USER
                await live.vm.stop(force=True, timeout_s=0)
            await self._seen_dead(live)

    async def _settled(self, live: Live) -> None:
        """Waits until it is known that a VM runs, or that it does not; not for ever."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(live.settled.wait(), READY_S + STANDBY_S)

    async def _seen_dead(self, live: Live) -> None:
        """Waits until a VM that ends has been taken leave of."""
        while self._lives.has(live) and live.vm is not None:
            with self._events.watch(live.row.uuid) as changed:
                if live.vm is not None and self._lives.has(live):
                    await changed.wait()

    async def link_lost(self, live: Live) -> None:
        """The proxy reaches a VM no more: it ends just now, or is ended.

        A process that is killed closes its link well before it can be seen dead, and one that
        breaks the protocol of links may not go on.
        """
        live.is_unlinked = True
        await self._settled(live)
        vm = live.vm
        try:
            await asyncio.wait_for(self._seen_dead(live), UNLINKED_S)
        except TimeoutError:
            async with self._lives.lock(live.row.id):
                if vm is not None and live.vm is vm and live.is_unlinked:
                    await self._give_up(live, vm)

    # Coming back --------------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Takes over the VM processes of an earlier torpord; those it left without one are lost.

        Must be complete before anything is started: no instance may run twice.
        """
        listeners: dict[str, Listener] = {}

        def listener(uuid: str) -> "Listener | None":
            row = self._store.instances.by_uuid(uuid)
            if row is None or row.state in ("stopped", "template", "checkpoint", "deleted"):
                return None
            live = Live(row, config_of(row.config), facts_of(row.facts), "running")
            live.woken = row.state == "standby"
            listeners[uuid] = self._starter.listener(live)
            return listeners[uuid]

        for found in await self._host.adopt(listener):
            live = listeners[found.instance].live
            live.vm, live.link_generation = found.process, found.generation
            live.base = found.template
            if live.base is not None:
                self._store.bases.pin(live.base.id)
            self._lives.enter(live)
            was_stopping = live.row.state in STOPPING
            if found.is_seeded and not was_stopping:
                live.listener = None
                await found.process.stop(force=True, timeout_s=0)
                self._lives.unpin(live)
                await self._lost(live, starts_anew=True)
                continue
            if not await self._go_on(found, live.row):
                self._lives.forget(live)
                continue
            if live.row.service_id is not None:
                live.group = self._groups.announce(live.row.service_id)
            live.settled.set()
            if was_stopping:
                live.stopping_for = STOPPED_BY_USER
                self._terminate(live)
            elif live.row.state == "starting":
                self._tasks.start(self._starter.record_running(live))
            result = listeners[found.instance].result
            if result is not None:
                self._tasks.start(self._ended(listeners[found.instance], result))
        for its in listeners.values():
            live = its.live
            if its.result is not None and live.listener is its and not self._lives.has(live):
                # Its VM has ended while there was nobody to hear of it.
                live.link_generation = live.row.generation
                if live.row.state in STOPPING:
                    live.stopping_for = STOPPED_BY_USER
                self._lives.enter(live)
                self._tasks.start(self._ended(its, its.result))
        alone = [
            row for row in self._store.instances.in_motion() if self._lives.get(row.id) is None
        ]
        if alone:
            # Written down in the background where the disk is full: until then they cannot start.
            settling = [self._tasks.start(self._without_vm(row)) for row in alone]
            await asyncio.wait(settling, timeout=SETTLE_S)

    async def _without_vm(self, row: InstanceRow) -> None:
        """An instance that was under way, and whose VM process is gone."""
        live = Live(row, config_of(row.config), facts_of(row.facts), row.state)
        if row.state == "starting":
            live.state = "stopped"
            self._lives.enter(live)
            self._plan_restart(live, 0)
            return
        if row.state not in STOPPING:
            await self._lost(live)
            return
        live.facts = msgspec.structs.replace(
            live.facts, stop_reason=KILLED_FOR_USER, stopped_ms=now_ms()
        )
        await self._lives.write_eventually(live, "stopped")
        await self._lives.discard_eventually(row)
        self._lives.set(live, "stopped", "api")

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
        for live in self._lives.all():
            if live.restart is not None:
                live.restart.cancel()
        await self._tasks.cancel()

    # What happens by itself ---------------------------------------------------------------------

    async def _ended(self, listener: Listener, result: Exit) -> None:
        live = listener.live
        async with self._lives.lock(live.row.id):
            if not self._lives.has(live) or live.listener is not listener:
                return
            live.vm, live.listener = None, None
            self._lives.unpin(live)
            why: Why = "stopped" if live.stopping_for is not None else "lost"
            self._links.detach(live.row.uuid, live.link_generation, why, parked=False)
            await self._console.flush()
            if result.kind == "lost" and live.stopping_for is None:
                await self._lost(live)
                return
            live.facts = facts_of_end(live, result)
            live.traffic = NO_TRAFFIC
            live.config, updates = apply_pending(live.config, live.facts.updates)
            live.facts = msgspec.structs.replace(live.facts, updates=updates)
            live.woken = False
            asked_for = live.stopping_for is not None
            again = not asked_for and wants_restart(live.config.restart_policy, result)
            end: State = live.begins_anew or ("starting" if again else "stopped")
            if requests_left(live.config, live.facts) == 0:
                again, end = False, "stopped"
            await self._lives.write_eventually(live, end)
            await self._lives.discard_eventually(live.row)
            if again:
                healthy = _loop_s() - live.began_s >= self._backoff.healthy_s
                self._plan_restart(live, 1 if healthy else live.attempt + 1)
                self._lives.set(live, "stopped", "guest")
                return
            self._lives.set(live, end, "api" if asked_for else "guest")
            self._lives.forget(live)

    async def _give_up(self, live: Live, vm: VmProcess) -> None:
        """Ends a VM that may not go on; its instance has the last committed state, if any."""
        live.stopping_for = LOST
        await vm.stop(force=True, timeout_s=0)
        self._links.detach(live.row.uuid, live.link_generation, "lost", parked=False)
        await self._lost(live)

    async def _lost(self, live: Live, *, starts_anew: bool = False) -> None:
        """The VM process is gone without a word: back to the last committed state, if any.

        One without starts again if its policy says so, or if its start was broken off.
        """
        live.vm = None
        committed = self._store.snapshots.find(live.row.id) is not None
        live.facts = msgspec.structs.replace(
            live.counted(), stop_reason=LOST, stop_code=None, exit_code=None, stopped_ms=now_ms()
        )
        live.traffic = NO_TRAFFIC
        again = not committed and (starts_anew or live.config.restart_policy != "never")
        end: State = "standby" if committed else "stopped"
        what = "starts again" if again else "is stopped"
        if committed:
            what = "goes on as it was stored last"
        self._console.say(live.row.id, f"the VM is gone; it {what}")
        note(f"torpord: instance '{live.row.name}' ({live.row.uuid}): the VM is gone; it {what}")
        await self._lives.write_eventually(live, "starting" if again else end)
        self._lives.set(live, end, "system")
        self._lives.forget(live)
        if again:
            self._lives.enter(live)
            self._plan_restart(live, live.attempt + 1)
        elif committed:
            self.on_timer()  # one that does not sleep is woken again

    def _plan_restart(self, live: Live, attempt: int) -> None:
        delay_s = self._backoff.delay_s(attempt)
        live.attempt, live.restart_at_ms = attempt, now_ms() + int(delay_s * 1000)
        live.stopping_for = None
        live.restart = self._tasks.start(self._restart(live, attempt, delay_s))

    async def _restart(self, live: Live, attempt: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        async with self._lives.lock(live.row.id):
            if not self._lives.has(live) or live.state != "stopped":
                return
            live.restart = None
            try:
                await self._starter.start(self._lives.current(live.row), "restart", attempt)
            except (ItemError, StoreError) as error:
                self._console.say(live.row.id, f"it cannot start: {error}")
                if self._lives.get(live.row.id) in (live, None):
                    live.row = self._lives.current(live.row)
                    live.facts = facts_of(live.row.facts)
                    self._lives.enter(live)
                    if live.row.state != "starting":
                        await self._lives.write_eventually(live, "starting")
                    self._plan_restart(live, attempt + 1)

    # Helpers ------------------------------------------------------------------------------------

    async def edit(
        self, row: InstanceRow, change: Callable[[InstanceRow, Config, Facts, bool], InstanceRow]
    ) -> InstanceRow:
        """Writes what `change(row, config, facts, live)` makes of an instance. Raises ItemError."""
        async with self._lives.lock(row.id):
            live = self._lives.get(row.id)
            current = self._lives.current(row) if live is None else live.row
            config, facts = config_of(current.config), facts_of(current.facts)
            if live is not None:
                config, facts = live.config, live.facts
            written = await self._lives.write(
                change(current, config, facts, live is not None), current
            )
            if live is not None:
                live.row = written
                live.config, live.facts = config_of(written.config), facts_of(written.facts)
            return written

    def _abort_restart(self, instance_id: int) -> None:
        live = self._lives.get(instance_id)
        if live is not None and live.restart is not None:
            live.restart.cancel()
            live.restart = None
            if live.state == "stopped":
                self._lives.leave(live.row)


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

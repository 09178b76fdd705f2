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
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from torpor.controller.console import Console
from torpor.controller.errors import Code, ItemError, from_store
from torpor.controller.events import Event, Events, Origin, now_ms
from torpor.controller.machines import Machines
from torpor.controller.model import (
    APPLICATION_EXIT,
    CRASH,
    FORCED_BY_USER,
    KILLED_FOR_USER,
    LOST,
    NO_IMAGE,
    OUT_OF_MEMORY,
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
from torpor.controller.updates import apply_pending
from torpor.controller.vm import Exit, VmHost, VmProcess
from torpor.store import InstanceRow, State, Store, StoreError

STOP_TIMEOUT_S = 10.0
RETRY_S = 1.0
"""Between attempts to record what has happened already, while the disk is full."""


@dataclass(eq=False, slots=True)
class Live:
    """An instance that is more than its row: it runs, comes or goes, or waits for a restart."""

    row: InstanceRow
    config: Config
    facts: Facts
    state: State
    vm: VmProcess | None = None
    attempt: int = 0
    restart_at_ms: int = 0
    restart: "asyncio.Task[None] | None" = None
    stopping_for: int | None = None
    """The stop reason to record when it has ended, if somebody asked for its end."""
    woken: bool = False
    """It came from standby, and its row still says so."""
    began_s: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    """When it was started last, by the event loop's clock."""


class Lifecycle:
    """All instances that are live, and the transitions of all instances."""

    def __init__(
        self,
        store: Store,
        host: VmHost,
        machines: Machines,
        saved: SavedStates,
        events: Events,
        console: Console,
        backoff: Backoff,
    ) -> None:
        self._store = store
        self._host = host
        self._machines = machines
        self._saved = saved
        self._events = events
        self._console = console
        self._backoff = backoff
        self._live: dict[int, Live] = {}
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()

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
                if live.vm is not None:
                    self._task(live.vm.stop(force=force, timeout_s=STOP_TIMEOUT_S))
            return previous, live.state

    async def suspend(self, row: InstanceRow, origin: Origin) -> tuple[State, State]:
        """Puts an instance into standby: the state it was in, and `standby`. Raises ItemError."""
        async with self.lock(row.id):
            live = self._live.get(row.id)
            if live is None or live.state != "running" or live.vm is None:
                state = self.state(self._current(row))
                if state == "standby":
                    return state, state
                raise _wrong_state(row, state, "suspend")
            content = await live.vm.standby()
            config, updates = apply_pending(live.config, live.facts.updates)
            facts = msgspec.structs.replace(
                live.facts, stop_reason=SCALED_TO_ZERO, stopped_ms=now_ms(), updates=updates
            )
            wanted = with_documents(live.row, config, facts, "standby")
            try:
                live.row = await self._saved.commit(wanted, content)
            except StoreError as error:
                live.stopping_for = LOST
                await self._lost(live)
                raise from_store(error, uuid=row.uuid, name=row.name) from error
            self._set(live, "standby", origin)
            self._forget(live)
            return "running", "standby"

    async def state_content(self, row: InstanceRow) -> bytes | None:
        """The memory of an instance now: running or in standby; None if it has none."""
        async with self.lock(row.id):
            live = self._live.get(row.id)
            if live is not None:
                if live.state != "running" or live.vm is None:
                    raise ItemError(
                        Code.WRONG_STATE, f"Cannot branch from VM in state '{live.state}'"
                    )
                return await live.vm.checkpoint()
            row = self._current(row)
            return await self._saved.read(row) if row.state == "standby" else None

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
            rest = self._live.pop(row.id, None)
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
            if found.generation != live.row.generation:
                # It was committed past this process's state, or never came from this store.
                await found.process.stop(force=True, timeout_s=0)
                continue
            live.vm = found.process
            self._live[live.row.id] = live
        for row in self._store.instances.in_motion():
            if row.id not in self._live:
                await self._lost(Live(row, config_of(row.config), facts_of(row.facts), row.state))

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
        waking = row.state == "standby"
        try:
            machine = self._machines.of(row, config)
            state = await self._saved.state(row, config)
        except StoreError as error:
            raise from_store(error, uuid=row.uuid, name=row.name) from error
        except ItemError as error:
            if error.code is Code.NOT_FOUND:
                reason, code = NO_IMAGE
                await self._store_state(row, row.state, reason, stop_code=code)
            self._failed_to_start(row, origin, error)
            raise
        began = now_ms()
        live = Live(row, config, facts, "starting", attempt=attempt, woken=waking)
        if not waking:
            live.facts = msgspec.structs.replace(
                facts,
                start_count=facts.start_count + 1,
                restart_count=facts.restart_count + (attempt > 0),
                started_ms=began,
                stop_reason=None,
                stop_code=None,
                exit_code=None,
            )
            live.row = await self._write(with_documents(row, config, live.facts, "starting"), row)
        self._live[row.id] = live
        self._announce(live.row, row.state, "starting", origin)
        listener = _Listener(self, live)
        try:
            if state is None:
                live.vm = await self._host.run(machine, listener)
            else:
                live.vm = await self._host.restore(machine, state, listener)
        except (ItemError, OSError) as error:
            if self._live.get(row.id) is live:
                del self._live[row.id]
            if not waking:
                await self._store_state(live.row, "stopped", LOST)
            failure = error if isinstance(error, ItemError) else _host_failed(row, error)
            self._failed_to_start(row, origin, failure)
            raise failure from error
        if state is not None and live.state == "starting":
            self._ready(live)

    def _ready(self, live: Live) -> None:
        if live.state != "starting":
            return
        self._set(live, "running", "guest")
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
            await self._console.flush()
            if result.kind == "lost" and live.stopping_for is None:
                await self._lost(live)
                return
            live.facts = _facts_of_end(live, result)
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
            self._live[live.row.id] = live
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
                    self._live[live.row.id] = live
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
                self._live.pop(instance_id)

    def _forget(self, live: Live) -> None:
        if self._live.get(live.row.id) is live:
            del self._live[live.row.id]
        self._events.notify(live.row.uuid)

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
        self._lifecycle = lifecycle

    def ready(self) -> None:
        self._lifecycle._ready(self.live)  # noqa: SLF001, RUF100 -- one idea in two classes

    def output(self, data: bytes) -> None:
        self._lifecycle._console.output(self.live.row.id, data)  # noqa: SLF001, RUF100
        self._lifecycle._events.notify(self.live.row.uuid)  # noqa: SLF001, RUF100

    def ended(self, result: Exit) -> None:
        self._lifecycle._task(self._lifecycle._ended(self.live, result))  # noqa: SLF001, RUF100


def _facts_of_end(live: Live, result: Exit) -> Facts:
    own_exit = result.kind == "exit"
    reason = live.stopping_for
    if reason is None:
        reason = APPLICATION_EXIT if own_exit else CRASH
    elif reason == STOPPED_BY_USER and not own_exit:
        reason = KILLED_FOR_USER
    code = OUT_OF_MEMORY if result.kind == "out-of-memory" else None
    status = result.status if own_exit else (128 + result.status if result.status else None)
    return msgspec.structs.replace(
        live.facts, stop_reason=reason, stop_code=code, exit_code=status, stopped_ms=now_ms()
    )


def _loop_s() -> float:
    return asyncio.get_running_loop().time()


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

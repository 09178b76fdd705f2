"""From a row to a VM that runs: cold starts, templates on the way, restores, links to the proxy."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from torpor.controller.console import Console
from torpor.controller.errors import BusyError, Code, ItemError, from_store
from torpor.controller.events import Events, Origin, now_ms
from torpor.controller.groups import ServiceGroups
from torpor.controller.links import Attachment, Links
from torpor.controller.live import DEFAULT_POLICY, Beginning, Live
from torpor.controller.live_set import RETRY_S, LiveSet
from torpor.controller.machines import Machines
from torpor.controller.model import (
    LOST,
    NO_IMAGE,
    config_of,
    facts_of,
    requests_left,
    started,
    with_documents,
    woken,
)
from torpor.controller.saved import SavedStates
from torpor.controller.templates import Templates
from torpor.controller.vm import Exit, Identity, Machine, VmHost, VmProcess
from torpor.controller.vm import State as SavedState
from torpor.errors import TorporError
from torpor.store import InstanceRow, State, Store, StoreError
from torpor.tasks import Tasks

READY_S = 10.0
"""After this a program that was started counts as ready, though it listens nowhere."""
RECORD_S = 5.0
"""After this it is written down that what was starting runs. Many go to standby before, and that
is written down then; until then `starting` says as much to the next torpord.
"""
STANDBY_S = 10.0
"""How long a busy VM may take to come to a point where it can be stored."""

Ended = Callable[["Listener", Exit], Coroutine[Any, Any, None]]
Lost = Callable[[Live], Coroutine[Any, Any, None]]


class Starter:
    """Makes instances run. `ended` and `lost` are told of those that do no more."""

    def __init__(
        self,
        store: Store,
        lives: LiveSet,
        host: VmHost,
        machines: Machines,
        saved: SavedStates,
        templates: Templates,
        links: Links,
        groups: ServiceGroups,
        events: Events,
        console: Console,
        tasks: Tasks,
        *,
        ended: Ended,
        lost: Lost,
    ) -> None:
        self._store = store
        self._lives = lives
        self._host = host
        self._machines = machines
        self._saved = saved
        self._templates = templates
        self._links = links
        self._groups = groups
        self._events = events
        self._console = console
        self._tasks = tasks
        self._on_ended = ended
        self._on_lost = lost
        self.refuses = False
        """The server is about to end: nothing is started any more."""
        self._failed_late: set[int] = set()
        """Instances whose last wake failed when the proxy had been told of it already."""

    def listener(self, live: Live) -> "Listener":
        """Hears of an instance's newest VM: what is still to come of former ones is void."""
        live.listener = Listener(self, live)
        return live.listener

    async def start(
        self,
        row: InstanceRow,
        origin: Origin,
        attempt: int = 0,
        *,
        soon: Callable[[Live], None] | None = None,
        recorded: bool = False,
    ) -> None:
        """Starts an instance, cold or from a saved state; its lock is held. Raises ItemError.

        `recorded`: its row says already that it was stopped and is starting.
        `soon` is told of one that wakes when the proxy has its link and it is about to run: what
        is sent to it meanwhile waits in the link. If that fails after all the link is lost, and
        the next wake is told when it is over, and why.
        """
        config, facts = config_of(row.config), facts_of(row.facts)
        if requests_left(config, facts) == 0:
            raise ItemError(Code.WRONG_STATE, "It has had all the requests that it may have")
        live = Live(row, config, facts, "starting", attempt=attempt)
        live.woken = row.state == "standby"
        is_starting = row.state == "starting"
        previous: State = "stopped" if is_starting else row.state
        machine: Machine | None = None
        try:
            self._check_accepts()
            state = await self._saved.state(row, config)
            if state is None:
                machine = self._machines.of(row, config)
                live.beginning = self._templates.begin_with(row, machine)
                state = live.beginning.clone_of
                self._say(row, live.beginning.why_no_template)
        except StoreError as error:
            if is_starting:
                await self._lives.write_state(row, previous, LOST)
            raise from_store(error, uuid=row.uuid, name=row.name) from error
        except ItemError as error:
            if is_starting or error.code is Code.NOT_FOUND:
                reason, code = NO_IMAGE if error.code is Code.NOT_FOUND else (LOST, None)
                await self._lives.write_state(row, previous, reason, stop_code=code)
            self._lives.start_failed(row, origin, error)
            raise
        if live.woken and not facts.start_count:
            live.facts = started(facts)  # it has another's memory, and runs for the first time
        if not live.woken and self._store.snapshots.find(row.id) is not None:
            # Of a stop that was broken off: what begins anew is not to fall back to that.
            try:
                await self._store.snapshots.discard(row.id)
            except StoreError as error:
                raise from_store(error, uuid=row.uuid, name=row.name) from error
        if not (live.woken or recorded):
            live.facts = started(facts, again=attempt > 0)
            live.row = await self._lives.write(
                with_documents(row, config, live.facts, "starting"), row
            )
        self._lives.enter(live)
        self._lives.announce(live.row, previous, "starting", origin)
        try:
            # Whoever puts all that is live away begins behind this, or saw it a moment ago.
            self._check_accepts()
            if state is not None:
                await self._restore(live, state, soon)
            else:
                assert machine is not None  # noqa: S101 -- there is one or the other
                await self._boot(live, machine)
        except (ItemError, OSError) as error:
            if self._lives.has(live):
                self._lives.forget(live)
            if not live.woken:
                await self._lives.write_state(live.row, "stopped", LOST)
            failure = error if isinstance(error, ItemError) else _host_failed(row, error)
            self._lives.start_failed(row, origin, failure)
            raise failure from error

    def _check_accepts(self) -> None:
        if self.refuses:
            raise BusyError("The server is about to end")

    async def _boot(self, live: Live, machine: Machine) -> None:
        machine = msgspec.structs.replace(machine, seed=live.beginning.seed)
        pair = self._links.pair()
        near = None if pair is None else pair[0]
        live.vm = await self._host.boot(machine, self.listener(live), near)
        self._attached(live, pair, resumed=False)
        if live.row.service_id is None and not live.beginning.is_stored_when_ready:
            # Nobody waits for it to listen: it runs as soon as it is started.
            self._ready(live)
        else:
            self._tasks.start(self._ready_in_time(live, live.vm))

    async def _restore(
        self, live: Live, state: SavedState, soon: Callable[[Live], None] | None = None
    ) -> None:
        row = live.row
        live.base = state.template
        self._store.bases.pin(state.template.id)
        pair = self._links.pair()
        near, far = (None, None) if pair is None else pair
        hostname = live.config.hostname or row.name[:63]
        who = Identity(row.uuid, hostname, row.generation)
        is_attached = False

        def attach() -> None:
            nonlocal is_attached
            is_attached = True
            self._attached(live, pair, resumed=state.resumes)

        def attach_soon() -> None:
            attach()
            assert soon is not None  # noqa: S101 -- passed on only then
            soon(live)

        trusted = soon is not None and live.woken and row.id not in self._failed_late
        self._failed_late.discard(row.id)
        try:
            live.vm = await self._host.restore(
                who, state, self.listener(live), near, attach_soon if trusted else None
            )
        except BaseException:
            if is_attached:
                self._failed_late.add(row.id)
                self._links.detach(row.uuid, live.link_generation, "lost", parked=False)
            elif far is not None:
                far.close()
            raise
        if not is_attached:
            attach()
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
        live.link_generation, live.link, live.is_unlinked = live.row.generation, None, False
        if pair is None:
            return
        live.link = time.monotonic_ns()
        row = live.row
        policy = live.policy
        if live.beginning.is_stored_when_ready:
            # Its VM is gone when it is ready: no request may go there, and it is not to sleep
            # before.
            policy = DEFAULT_POLICY
        elif row.service_id is not None:
            alone = len(self._lives.of_service(row.service_id)) <= 1
            live.group = self._groups.announce(row.service_id, anew=alone)
        what = Attachment(
            row.uuid,
            row.name,
            row.generation,
            live.link,
            live.group,
            resumed,
            policy,
            requests_left(live.config, live.facts),
        )
        self._links.attach(what, pair[1])

    async def attach_again(self, live: Live, since_ns: int) -> None:
        """A proxy that was started anew has no link to this VM: it gets another one.

        Unless it got one since then (CLOCK_MONOTONIC), by a wake that was under way.
        """
        async with self._lives.lock(live.row.id):
            if not self._lives.has(live) or live.vm is None or (live.link or 0) >= since_ns:
                return
            pair = self._links.pair()
            if pair is None:
                return
            try:
                await live.vm.link(pair[0])
            except BaseException as error:
                pair[1].close()
                if isinstance(error, ItemError):
                    return
                raise
            self._attached(live, pair, resumed=False)

    async def _ready_in_time(self, live: Live, vm: VmProcess) -> None:
        """A program that listens nowhere is ready after READY_S all the same."""
        while True:
            await asyncio.sleep(READY_S)
            async with self._lives.lock(live.row.id):
                if not self._lives.has(live) or live.vm is not vm:
                    return
                if live.state != "starting":
                    return
                try:
                    if live.beginning.is_stored_when_ready:
                        await self._goes_on_stored(live, runs=True)
                        return
                except (ItemError, StoreError, OSError) as error:
                    if isinstance(error, BusyError) and live.vm is vm:
                        continue  # its random numbers are still those of its siblings
                    await self._failed(live, error)
                    return
                self._ready(live)
                return

    async def _at_ready(self, listener: "Listener") -> None:
        """A VM that was started cold has stopped, because its program is ready."""
        live = listener.live
        async with self._lives.lock(live.row.id):
            if not self._lives.has(live) or live.listener is not listener or live.vm is None:
                return
            try:
                if live.state == "starting" and live.beginning.is_stored_when_ready:
                    await self._goes_on_stored(live)
                    return
                await live.vm.go_on()
            except (ItemError, StoreError, OSError) as error:
                await self._failed(live, error)
                return
            self._ready(live)

    async def _failed(self, live: Live, error: TorporError | OSError) -> None:
        """It cannot go on: the log says why, and what follows is as for any other end."""
        self._say(live.row, error)
        if live.vm is not None:
            await live.vm.stop(force=True, timeout_s=0)
        else:
            await self._on_lost(live)

    async def _goes_on_stored(self, live: Live, *, runs: bool = False) -> None:
        """Stores the VM, which is stopped (or `runs`), and goes on with that in another one.

        Of many that were started at once the first one's template serves them all. Where clones
        would repeat secrets the console says why, and it boots once more, with random numbers of
        its own: the first ones may be its siblings' too.
        """
        row, vm, beginning = live.row, live.vm, live.beginning
        assert vm is not None and beginning.key is not None  # noqa: S101, PT018 -- the caller looked
        async with self._templates.base_of(beginning) as (state, sibling):
            whole, why_not = None, None
            if state is None and runs:
                whole = await vm.standby(0, busy=True, within_s=STANDBY_S)
            if state is None and sibling is not None:
                # That of another kernel, for one, is refused: then it gets one of its own.
                try:
                    delta = await vm.sibling(sibling, row.generation)
                    why_not = self._templates.refusal(beginning, delta)
                    state = SavedState(sibling, delta.content)
                except (ItemError, StoreError) as error:
                    self._say(row, error)
                    whole = None  # it may have run on since
            if state is None:
                whole = whole or await vm.template()
                why_not = self._templates.refusal(beginning, whole)
                if why_not is None:
                    image = live.config.image_digest
                    base = await self._templates.add(row, whole, image, beginning)
                    state = SavedState(base, None)
        live.beginning = Beginning()
        live.vm = None
        await vm.release()
        self._links.detach(row.uuid, live.link_generation, "lost", parked=False)
        if state is not None and why_not is None:
            await self._restore(live, state)
        else:
            self._say(row, why_not)
            await self._boot(live, self._machines.of(row, live.config))

    def _say(self, row: InstanceRow, what: object | None) -> None:
        """Writes a line to an instance's log, if there is anything to say."""
        if what is not None:
            self._console.say(row.id, what)

    def _ready(self, live: Live) -> None:
        if live.state != "starting":
            return
        self._lives.set(live, "running", "guest")
        live.settled.set()
        if live.woken:
            live.facts = woken(live.facts, asyncio.get_running_loop().time() - live.began_s)
            return
        started_us = (now_ms() - live.facts.started_ms) * 1000
        live.facts = msgspec.structs.replace(live.facts, boot_time_us=started_us)
        self._tasks.start(self.record_running(live, after_s=RECORD_S))

    async def record_running(self, live: Live, *, after_s: float = 0.0) -> None:
        """Writes down that an instance runs, if it still does after that time."""
        while True:
            await asyncio.sleep(after_s)
            async with self._lives.lock(live.row.id):
                if not self._lives.has(live) or live.state != "running":
                    return
                wanted = with_documents(live.row, live.config, live.facts, "running")
                with contextlib.suppress(StoreError):  # a full disk, for one
                    live.row = await self._lives.write(wanted, live.row)
                    return
            # Whoever is to stop it meanwhile does not wait for room.
            after_s = RETRY_S

    # What VM processes tell ---------------------------------------------------------------------

    def heard_ready(self, listener: "Listener") -> None:
        """A VM has stopped, because its program is ready."""
        self._tasks.start(self._at_ready(listener))

    def heard_output(self, live: Live, data: bytes) -> None:
        """A VM's console."""
        self._console.output(live.row.id, data)
        self._events.notify(live.row.uuid)

    def heard_end(self, listener: "Listener", result: Exit) -> None:
        """A VM and its process are gone."""
        self._tasks.start(self._on_ended(listener, result))


class Listener:
    """Passes what a VM process tells on to its instance."""

    def __init__(self, starter: Starter, live: Live) -> None:
        self.live = live
        self.result: Exit | None = None
        self._starter = starter

    def ready(self) -> None:
        self._starter.heard_ready(self)

    def output(self, data: bytes) -> None:
        self._starter.heard_output(self.live, data)

    def ended(self, result: Exit) -> None:
        self.result = result
        self._starter.heard_end(self, result)


def _host_failed(row: InstanceRow, error: OSError) -> ItemError:
    return ItemError(
        Code.FAILED, f"The VM process could not be started: {error}", uuid=row.uuid, name=row.name
    )

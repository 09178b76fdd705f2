"""What torpord does by itself, now and then: checkpoints, and letting go of what is not needed."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from torpor.controller.clock import steady_ms
from torpor.controller.errors import ItemError
from torpor.controller.events import now_ms
from torpor.controller.groups import ServiceGroups
from torpor.controller.lifecycle import Lifecycle
from torpor.controller.live import DEFAULT_POLICY, Live
from torpor.controller.machines import Machines
from torpor.controller.model import config_of
from torpor.controller.templates import Templates
from torpor.controller.vm import VmHost
from torpor.serverlog import note
from torpor.store import InstanceRow, Store, StoreError

TICK_S = 1.0
TIMERS_S = 5.0
"""So often at least: the event loop's clock stands still while the host sleeps."""
WAKES_AT_ONCE = 16
WAKES_PAUSE_S = 0.05
"""Between so many, where more are due."""
WAKE_AGAIN_MS = 10_000
CHECKPOINTS_AT_ONCE = 2
KILLS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Policy:
    """How long things are kept. A time of 0 is for ever, a size of 0 without bound."""

    checkpoint_s: float = 0.0
    """How often the state of a stateful instance that stays awake is committed."""
    timer_interval_s: float = 1.0
    """Instances' own timers wake them no sooner than this after they were put down."""
    template_unused_s: float = 7 * 86400.0
    """Templates that serve a configuration, and that nothing needs, go after this."""
    templates_bytes: int = 10 << 30
    """And the oldest of them while all take more than this."""
    lower_after_s: float = 86400.0
    """Snapshots in files go to the lower tier when they were not used for this long."""
    upper_bytes: int = 0
    """And the oldest of them while all take more than this."""
    image_unused_s: float = 3600.0
    """Images that no instance and no template is made of can be collected after this."""
    sweep_s: float = 60.0
    """How often is looked for what may go."""


class _OfEach:
    """Work for instances side by side: one that takes long keeps none of the others waiting."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self.under_way: set[int] = set()
        """Ids of those whose work is not done."""

    def start(self, instance_id: int, work: Coroutine[Any, Any, None]) -> None:
        self.under_way.add(instance_id)
        task = self._tasks.create_task(work)
        task.add_done_callback(lambda _: self.under_way.discard(instance_id))


class Upkeep:
    """One task for each of these."""

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        groups: ServiceGroups,
        machines: Machines,
        templates: Templates,
        host: VmHost,
        policy: Policy,
        *,
        tiered: bool,
        kill: Callable[[InstanceRow], Awaitable[None]],
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._groups = groups
        self._machines = machines
        self._templates = templates
        self._kill = kill
        self._host = host
        self._policy = policy
        self._tiered = tiered
        self._put_off: dict[int, int] = {}
        """Ids of instances whose timers could not wake them, and until when they are let be."""
        self._slots = asyncio.Semaphore(CHECKPOINTS_AT_ONCE)
        self._timer_set = asyncio.Event()
        lifecycle.on_timer = self._timer_set.set

    async def run(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._policy.checkpoint_s:
                tasks.create_task(self._again(self._checkpoints))
            tasks.create_task(self._again(self._timers))
            tasks.create_task(self._again(self._kills))
            tasks.create_task(self._collect())
            tasks.create_task(self._again(self._sweeps))

    async def _again(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does that for ever: what fails of one of these ends none of the others."""
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001, RUF100 -- a disk that fails, for one
                note(f"torpord: {work.__name__.strip('_')}: {error!r}")
            await asyncio.sleep(TIMERS_S)

    async def _collect(self) -> None:
        # On a full disk, for one, the next start tries again.
        with contextlib.suppress(StoreError, OSError):
            await self._store.collect()

    async def _checkpoints(self) -> None:
        every_s = self._policy.checkpoint_s
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            each = _OfEach(tasks)
            while True:
                await asyncio.sleep(min(TICK_S, every_s))
                for live in self._lifecycle.lives.all():
                    is_due = (
                        live.policy.stateful
                        and live.state == "running"
                        and loop.time() - live.saved_s >= every_s
                    )
                    if is_due and live.row.id not in each.under_way:
                        each.start(live.row.id, self._checkpoint(live))

    async def _checkpoint(self, live: Live) -> None:
        async with self._slots:
            try:
                await self._lifecycle.checkpoint(live)
            except ItemError:
                # It is busy, or the disk is full: tried again when it is due again.
                live.saved_s = asyncio.get_running_loop().time()

    async def _timers(self) -> None:
        """Wakes instances for timers of their own, and those that never sleep but lost their VM."""
        async with asyncio.TaskGroup() as tasks:
            each = _OfEach(tasks)
            while True:
                self._timer_set.clear()
                lives, now = self._lifecycle.lives, steady_ms()
                self._put_off = {one: until for one, until in self._put_off.items() if until > now}
                # Those that were woken since have the same committed state.
                limit = len(lives.all()) + len(self._put_off) + len(each.under_way)
                limit += WAKES_AT_ONCE
                due = self._store.snapshots.due(now, limit)
                let_be = self._put_off.keys() | each.under_way
                asleep = [one for one in due if lives.get(one) is None and one not in let_be]
                for one in asleep[:WAKES_AT_ONCE]:
                    each.start(one, self._wake(one))
                following = self._store.snapshots.due_after(now)
                pause_s = TIMERS_S
                if len(asleep) > WAKES_AT_ONCE:
                    pause_s = WAKES_PAUSE_S
                elif following is not None:
                    pause_s = min(max(following - steady_ms(), 0) / 1000, TIMERS_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._timer_set.wait(), pause_s)

    async def _wake(self, instance_id: int) -> None:
        row = self._store.instances.by_id(instance_id)
        if row is None:
            return
        policy = config_of(row.config).scale_to_zero or DEFAULT_POLICY
        # It may have changed since; without state it would wake for the same timer again and again.
        for_timer = policy.wake_on_timer and policy.stateful
        if for_timer or policy.policy == "off":
            with contextlib.suppress(ItemError, TimeoutError):  # without memory for it, say
                await self._lifecycle.wake(row, "system")
                if for_timer:
                    return
        # Of those that never sleep as well: one whose VM ends again at once.
        self._put_off[instance_id] = steady_ms() + WAKE_AGAIN_MS

    async def _kills(self) -> None:
        """Deletes what has an autokill whose time is over."""
        pause_s = TICK_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = TICK_S
            # Those that are live, about to be restarted say, are let be.
            limit = len(self._lifecycle.lives.all()) + KILLS_AT_ONCE
            with contextlib.suppress(StoreError):  # a full disk, for one: tried again
                due = self._store.instances.to_kill(now_ms(), limit)
                await asyncio.gather(*map(self._kill, due))
                await self._groups.kill_unused(KILLS_AT_ONCE)
                if len(due) == limit:
                    pause_s = 0

    async def _sweeps(self) -> None:
        while True:
            await asyncio.sleep(self._policy.sweep_s)
            try:
                await self.sweep()
            except StoreError:
                continue  # a full disk, for one: the next sweep tries again

    async def sweep(self) -> int:
        """Lets go of templates and images, moves cold blobs down; how many. Raises StoreError."""
        dropped = await self._drop_templates()
        if self._policy.image_unused_s:
            dropped += await self._machines.release_unused(self._policy.image_unused_s)
        if self._tiered:
            after_s = self._policy.lower_after_s
            unused_since_ms = now_ms() - int(after_s * 1000) if after_s else 0
            bound = self._policy.upper_bytes or (1 << 62)
            dropped += await self._store.snapshots.cool(unused_since_ms, bound)
        return dropped

    async def _drop_templates(self) -> int:
        in_use = self._host.in_use()
        await self._store.bases.touch(in_use, now_ms())
        unneeded = [base for base in self._store.bases.unneeded() if base.id not in in_use]
        limit_ms = now_ms() - int(self._policy.template_unused_s * 1000)
        excess = sum(base.size_bytes for base in unneeded) - (
            self._policy.templates_bytes or (1 << 62)
        )
        count = 0
        for base in unneeded:
            old = bool(self._policy.template_unused_s) and base.used_ms < limit_ms
            # A warm base is for those that are still to come of its template. One without a key
            # serves nobody any more: what it was of is gone.
            of = base if base.template_id is None else self._store.bases.by_id(base.template_id)
            serves = of is not None and of.key is not None
            if (not old and excess <= 0 and serves) or base.id in self._host.in_use():
                continue
            digests = await self._store.bases.drop(base)
            if digests:
                self._templates.dropped(base)
                await self._store.snapshots.drop_unreferenced(digests)
                excess -= base.size_bytes
                count += 1
        return count

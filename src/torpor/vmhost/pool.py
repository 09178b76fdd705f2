"""VM processes that rest, ready to become an instance of their template.

How many a template keeps follows from how many were busy at once lately; a template that nobody
wakes any more loses them. What bounds them all is memory; a number can be set besides. Whoever
finds none at rest gets the next one that comes back or is made, in the order in which they came. A
process that comes back costs a tenth of a new one, so few are made at a time. While others come
back quickly only one is, and none if the processors have no time for it: it would keep those from
coming back. What is taken is replaced in the background; and where there are as many as are
wanted, those that are new are touched, which takes longer than making them and makes their first
wake shorter.
"""

import asyncio
import contextlib
import os
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from torpor.store import Base
from torpor.tasks import Tasks
from torpor.vmhost.processors import Processors
from torpor.vmhost.worker import Rest, Worker


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the pool and of all VM processes together."""

    per_template: int = 0
    """Processes that rest, at most, for one template; 0 for as many as there is memory for."""
    total: int = 0
    """And for all."""
    spare: int = 1
    """Processes that rest beyond what was busy at once lately."""
    keep_s: float = 300.0
    """After the last wake of a template, its processes are let go of."""
    reuse: bool = True
    """False: every wake gets a process that no instance has been in."""
    memory_bytes: int = 0
    """What all VM processes may use, by measure; 0 for three quarters of the host's memory."""


@dataclass(slots=True, eq=False)
class Waiter:
    """A wake that gets the next process that comes to rest there."""

    rest: Rest
    warm: Base | None
    given: "asyncio.Future[Worker]"
    patient: bool = True
    """It lets those that are being reset come first."""


@dataclass(slots=True)
class Demand:
    """Of one template."""

    base: Base
    in_use: int = 0
    """Processes, and wakes that wait for one."""
    coming: int = 0
    """Processes that are being reset."""
    making: int = 0
    peak: float = 0.0
    """The most in use or coming at once, forgotten by and by."""
    used_s: float = 0.0
    came_s: float = -1.0
    """When one came back last."""
    hired: int = 0
    """Processes that are being made for those that wait."""
    resting: list[Worker] = field(default_factory=list)
    waiting: deque[Waiter] = field(default_factory=deque)

    def busy(self) -> int:
        """Processes that are in use or coming."""
        return self.in_use - len(self.waiting) + self.coming

    def note(self) -> None:
        """Something has begun to be busy."""
        self.peak = max(self.peak, self.busy())
        self.used_s = asyncio.get_running_loop().time()


PATIENCE_S = 0.1
"""How long a wake waits for a process that is being reset; a guest may hold that up."""
MAKING_S = 0.02
"""About what making one takes: while others come back within this, one is made at a time."""
STALLED_S = 0.25
"""Where processors have no time left, those that nobody has come back for so long get one made."""
MAKERS = 2 * len(os.sched_getaffinity(0))
"""Processes that are made at once, for one template, for those that wait."""
TICK_S = 1.0
FORGET = 0.999
"""What is left of a peak after a tick: half after 12 minutes. To end a process takes about 10 ms of
processor time, which is to be no load of its own.
"""


class Pool:
    """The processes that rest, of all templates."""

    def __init__(
        self,
        limits: Limits,
        make: Callable[[Base, Base | None, bool], Awaitable[Worker]],
        warm: Callable[[Base], Base | None],
    ) -> None:
        self.limits = limits
        self._make = make
        """One that rests at a template and this warm base, and whether somebody waits for it: who
        is told its errors."""
        self._warm = warm
        """The warm base at which processes of a template are to rest now."""
        self._tasks = Tasks()
        self._demands: dict[int, Demand] = {}
        self._resting = 0
        self._refilling: asyncio.Task[None] | None = None
        self._refill_wanted = asyncio.Event()
        self._is_closed = False
        self.room: Callable[[], bool] = lambda: True
        """Whether there is memory for another process."""
        self.time_left: Callable[[], bool] = Processors().have_time
        """Whether there is processor time for making one."""

    def start(self) -> None:
        """Begins to refill and to let go."""
        self._refilling = asyncio.create_task(self._refill())

    def _demand(self, base: Base) -> Demand:
        found = self._demands.get(base.id)
        if found is None:
            found = self._demands[base.id] = Demand(base)
        return found

    # Taking and giving --------------------------------------------------------------------------

    async def take(self, base: Base, warm: Base | None) -> Worker:
        """A process that rests there. Raises what making one raises.

        Counts as a use, unless it raises.
        """
        demand = self._demand(base)
        demand.in_use += 1
        rest = Rest.at(base, warm)
        while demand.resting:
            worker = self._pop(demand)
            if worker.alive and worker.rest == rest:
                demand.note()
                if not demand.resting:
                    self._refill_wanted.set()
                return worker
            # It rests where nothing is restored any more.
            worker.kill()
        self._refill_wanted.set()
        loop = asyncio.get_running_loop()
        waiter = Waiter(rest, warm, loop.create_future())
        demand.waiting.append(waiter)
        self._hire(demand)
        patience = loop.call_later(PATIENCE_S, self._lose_patience, demand, waiter)
        try:
            worker = await waiter.given
        except BaseException as error:
            demand.in_use -= 1
            if waiter in demand.waiting:
                demand.waiting.remove(waiter)
            elif isinstance(error, asyncio.CancelledError) and _has_worker(waiter):
                self._give(demand, waiter.given.result())
            raise
        finally:
            patience.cancel()
        demand.note()
        return worker

    def _lose_patience(self, demand: Demand, waiter: Waiter) -> None:
        waiter.patient = False
        self._hire(demand)

    def _hire(self, demand: Demand) -> None:
        """Has processes made for those that wait and get none of those that come back."""
        if self._is_closed:
            return
        hopeful = demand.coming
        short = -demand.hired
        for waiter in demand.waiting:
            if waiter.patient and hopeful > 0:
                hopeful -= 1
            else:
                short += 1
        alone_s = asyncio.get_running_loop().time() - demand.came_s
        if self.time_left():
            makers = 1 if alone_s < MAKING_S else MAKERS
        else:
            makers = 0 if alone_s < STALLED_S else MAKERS
        for _ in range(min(short, makers - demand.hired)):
            demand.hired += 1
            self._tasks.start(self._make_for(demand))

    async def _make_for(self, demand: Demand) -> None:
        """One process, for whoever has waited longest by then."""
        try:
            if demand.waiting:
                first = demand.waiting[0]
                try:
                    worker = await self._make(demand.base, first.warm, True)
                except Exception as error:  # noqa: BLE001, RUF100 -- it belongs to who waits
                    if first in demand.waiting:
                        demand.waiting.remove(first)
                        first.given.set_exception(error)
                else:
                    self._give(demand, worker)
        finally:
            demand.hired -= 1
            self._hire(demand)

    def adopted(self, base: Base) -> None:
        """A process of that template was in use before this torpord began."""
        demand = self._demand(base)
        demand.in_use += 1
        demand.note()

    def done(self, base_id: int) -> None:
        """A process of that template is not in use any more."""
        demand = self._demands.get(base_id)
        if demand is not None:
            demand.in_use = max(demand.in_use - 1, 0)
            if not self.limits.reuse:  # it does not come back
                self._refill_wanted.set()

    def comes(self, base: Base) -> None:
        """A process is about to come back: `came` follows in any case."""
        demand = self._demand(base)
        demand.coming += 1
        demand.note()

    def came(self, base: Base, worker: Worker | None) -> None:
        """It rests, or is of no more use: whoever waits gets it, else it is kept or ended."""
        demand = self._demand(base)
        demand.coming -= 1
        if worker is not None and not self.room():
            # Whoever waits gets another one when there is room for it.
            worker.kill()
        elif worker is not None:
            demand.came_s = asyncio.get_running_loop().time()
            self._give(demand, worker)
        self._hire(demand)

    def give(self, worker: Worker) -> None:
        """A process that rests: for whoever waits, else kept if there is room, else ended."""
        demand = None if worker.rest is None else self._demands.get(worker.rest.template_id)
        if demand is None:
            worker.kill()
        else:
            self._give(demand, worker)

    def _give(self, demand: Demand, worker: Worker) -> None:
        for waiter in demand.waiting:
            if waiter.rest == worker.rest and worker.alive and not waiter.given.done():
                demand.waiting.remove(waiter)
                waiter.given.set_result(worker)
                return
        self._keep(demand, worker)

    def _keep(self, demand: Demand, worker: Worker) -> None:
        if not worker.alive or self._is_full(demand) or not self.room():
            worker.kill()
            return
        # Those that are taken first are the last.
        demand.resting.insert(0 if worker.is_fresh else len(demand.resting), worker)
        self._resting += 1
        if self.limits.total and self._resting > self.limits.total:
            self.evict_one()

    def _is_full(self, demand: Demand) -> bool:
        most = self.limits.per_template
        return bool(most) and len(demand.resting) >= most

    def _pop(self, demand: Demand, position: int = -1) -> Worker:
        self._resting -= 1
        return demand.resting.pop(position)

    def warm(self, base: Base) -> None:
        """A template that will be wanted: its first process is made now."""
        demand = self._demand(base)
        demand.peak = max(demand.peak, 1.0)
        demand.used_s = asyncio.get_running_loop().time()
        self._refill_wanted.set()

    # Letting go ---------------------------------------------------------------------------------

    def evict_one(self) -> bool:
        """Ends a resting process of the template that was used longest ago."""
        demands = [demand for demand in self._demands.values() if demand.resting]
        if not demands:
            return False
        oldest = min(demands, key=lambda demand: demand.used_s)
        self._pop(oldest, 0).kill()
        return True

    def resting(self) -> int:
        """How many there are."""
        return self._resting

    def resting_of(self) -> dict[int, int]:
        """How many rest or are in use, by template."""
        count: dict[int, int] = defaultdict(int)
        for base_id, demand in self._demands.items():
            busy = demand.in_use + demand.coming + demand.making + demand.hired
            count[base_id] = len(demand.resting) + busy
        return count

    def _wanted(self, demand: Demand) -> int:
        """How many are to rest, or to be made or reset for it, beside those in use."""
        if asyncio.get_running_loop().time() - demand.used_s > self.limits.keep_s:
            return 0
        in_use = demand.in_use - len(demand.waiting)
        wanted = max(round(demand.peak) + self.limits.spare - in_use, self.limits.spare)
        return min(wanted, self.limits.per_template or wanted)

    async def _refill(self) -> None:
        loop = asyncio.get_running_loop()
        ticked_s = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                some_wait = any(demand.waiting for demand in self._demands.values())
                pause_s = PATIENCE_S if some_wait else TICK_S
                await asyncio.wait_for(self._refill_wanted.wait(), pause_s)
            self._refill_wanted.clear()
            for demand in self._demands.values():
                if demand.waiting:  # and nothing may come any more
                    self._hire(demand)
            if loop.time() - ticked_s >= TICK_S:
                self._forget((loop.time() - ticked_s) / TICK_S)
                ticked_s = loop.time()
            await self._make_some()
            if not self._refill_wanted.is_set():
                await self._touch_one()

    def _forget(self, ticks: float) -> None:
        """Lets demands fade, and ends what they want no more."""
        for base_id, demand in list(self._demands.items()):
            demand.peak = max(demand.peak * FORGET**ticks, demand.busy())
            wanted = self._wanted(demand)
            while len(demand.resting) > wanted:
                self._pop(demand, 0).kill()
            busy = demand.in_use or demand.coming or demand.making or demand.hired
            if not demand.resting and not busy and wanted == 0:
                del self._demands[base_id]

    async def _make_some(self) -> None:
        """One process for each template that wants one, those used last first."""
        total = self.limits.total
        for demand in sorted(self._demands.values(), key=lambda one: -one.used_s):
            if demand.waiting or len(demand.resting) + demand.coming >= self._wanted(demand):
                continue
            if (total and self._resting >= total) or not self.room():
                return
            demand.making += 1
            try:
                worker = await self._make(demand.base, self._warm(demand.base), False)
            except Exception:  # noqa: BLE001, S112, RUF100 -- the next wake meets it and says so
                continue
            finally:
                demand.making -= 1
            self._give(demand, worker)
            if len(demand.resting) + demand.coming < self._wanted(demand):
                self._refill_wanted.set()

    async def _touch_one(self) -> None:
        """Where another one rests for the next wake, and processors have time."""
        for demand in sorted(self._demands.values(), key=lambda one: -one.used_s):
            if len(demand.resting) < 2 or not demand.resting[0].is_fresh or not self.time_left():
                continue
            worker = self._pop(demand, 0)
            demand.making += 1
            try:
                await worker.touch()
            finally:
                demand.making -= 1
                self._give(demand, worker)
            self._refill_wanted.set()
            return

    async def close(self) -> None:
        """Ends what rests."""
        self._is_closed = True
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.gather(self._refilling, return_exceptions=True)
        await self._tasks.cancel()
        for demand in self._demands.values():
            while demand.resting:
                self._pop(demand).kill()


def _has_worker(waiter: Waiter) -> bool:
    """Whether it was given one, though it is not there to take it."""
    given = waiter.given
    return given.done() and not given.cancelled() and given.exception() is None

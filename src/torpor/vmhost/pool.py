"""VM processes that rest, ready to become an instance of their template.

How many a template keeps follows from how many it had in use at once lately; a template that
nobody wakes any more loses them. What is taken is replaced in the background.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from torpor.store import Base
from torpor.vmhost.worker import Rest, Worker


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the pool and of all VM processes together."""

    per_template: int = 32
    """Processes that rest, at most, for one template."""
    total: int = 64
    """And for all."""
    spare: int = 1
    """Processes that rest beyond what was in use at once lately."""
    keep_s: float = 60.0
    """After the last wake of a template, its processes are let go of."""
    reuse: bool = True
    """False: every wake gets a process that no instance has been in."""
    memory_bytes: int = 0
    """What all VM processes may use, by measure; 0 for three quarters of the host's memory."""


@dataclass(slots=True)
class Demand:
    """Of one template."""

    base: Base
    in_use: int = 0
    peak: float = 0.0
    """The most in use at once, forgotten by and by."""
    used_s: float = 0.0
    resting: list[Worker] = field(default_factory=list)
    making: int = 0


TICK_S = 1.0
FORGET = 0.97
"""What is left of a peak after a tick: half after 23 s."""


class Pool:
    """The processes that rest, of all templates."""

    def __init__(self, limits: Limits, make: Callable[[Base], Awaitable[Worker]]) -> None:
        self.limits = limits
        self._make = make
        self._demands: dict[int, Demand] = {}
        self._refilling: asyncio.Task[None] | None = None
        self._refill_wanted = asyncio.Event()
        self.room: Callable[[], bool] = lambda: True
        """Whether there is memory for another process."""

    def start(self) -> None:
        """Begins to refill and to let go."""
        self._refilling = asyncio.create_task(self._refill())

    def _demand(self, base: Base) -> Demand:
        found = self._demands.get(base.id)
        if found is None:
            found = self._demands[base.id] = Demand(base)
        return found

    def take(self, base: Base, warm_id: int | None) -> Worker | None:
        """A process that rests there, if there is one. Counts as a use in any case."""
        demand = self._demand(base)
        demand.in_use += 1
        demand.peak = max(demand.peak, demand.in_use)
        demand.used_s = asyncio.get_running_loop().time()
        rest = Rest(base.id, warm_id)
        self._refill_wanted.set()
        while demand.resting:
            worker = demand.resting.pop()
            if worker.alive and worker.rest == rest:
                return worker
            # It rests where nothing is restored any more.
            worker.kill()
        return None

    def adopted(self, base: Base) -> None:
        """A process of that template was in use before this torpord began."""
        demand = self._demand(base)
        demand.in_use += 1
        demand.peak = max(demand.peak, demand.in_use)
        demand.used_s = asyncio.get_running_loop().time()

    def done(self, base_id: int) -> None:
        """A process of that template is not in use any more."""
        demand = self._demands.get(base_id)
        if demand is not None:
            demand.in_use = max(demand.in_use - 1, 0)

    def give(self, worker: Worker) -> None:
        """A process that rests: kept if there is room for it, else ended."""
        demand = None if worker.rest is None else self._demands.get(worker.rest.template_id)
        if (
            demand is None
            or not worker.alive
            or len(demand.resting) >= min(self._wanted(demand), self.limits.per_template)
            or not self.room()
        ):
            worker.kill()
            return
        demand.resting.append(worker)
        self._shrink()

    def warm(self, base: Base) -> None:
        """A template that will be wanted: its first process is made now."""
        demand = self._demand(base)
        demand.peak = max(demand.peak, 1.0)
        demand.used_s = asyncio.get_running_loop().time()
        self._refill_wanted.set()

    def drop_resting(self, keep: Callable[[Worker], bool]) -> int:
        """Ends the processes that rest and are not to be kept; how many."""
        count = 0
        for demand in self._demands.values():
            for worker in demand.resting:
                if not keep(worker):
                    worker.kill()
                    count += 1
            demand.resting = [worker for worker in demand.resting if not worker.killed]
        return count

    def evict_one(self) -> bool:
        """Ends a resting process of the template that was used longest ago."""
        demands = [demand for demand in self._demands.values() if demand.resting]
        if not demands:
            return False
        oldest = min(demands, key=lambda demand: demand.used_s)
        oldest.resting.pop(0).kill()
        return True

    def resting(self) -> int:
        """How many there are."""
        return sum(len(demand.resting) for demand in self._demands.values())

    def resting_of(self) -> dict[int, int]:
        """How many rest or are in use, by template."""
        count: dict[int, int] = defaultdict(int)
        for base_id, demand in self._demands.items():
            count[base_id] = len(demand.resting) + demand.in_use + demand.making
        return count

    def _wanted(self, demand: Demand) -> int:
        if asyncio.get_running_loop().time() - demand.used_s > self.limits.keep_s:
            return 0
        return max(round(demand.peak) + self.limits.spare - demand.in_use, self.limits.spare)

    def _shrink(self) -> None:
        while self.resting() > self.limits.total:
            self.evict_one()

    async def _refill(self) -> None:
        loop = asyncio.get_running_loop()
        ticked_s = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._refill_wanted.wait(), TICK_S)
            self._refill_wanted.clear()
            ticks = (loop.time() - ticked_s) / TICK_S
            ticked_s = loop.time()
            for base_id, demand in list(self._demands.items()):
                demand.peak = max(demand.peak * FORGET**ticks, demand.in_use)
                while len(demand.resting) > self._wanted(demand):
                    demand.resting.pop(0).kill()
                if not demand.resting and not demand.in_use and self._wanted(demand) == 0:
                    del self._demands[base_id]
            await self._make_some()

    async def _make_some(self) -> None:
        """One process for each template that wants one, those used last first."""
        for demand in sorted(self._demands.values(), key=lambda one: -one.used_s):
            enough = min(self._wanted(demand), self.limits.per_template)
            if len(demand.resting) >= enough or self.resting() >= self.limits.total:
                continue
            if not self.room():
                return
            demand.making += 1
            try:
                worker = await self._make(demand.base)
            except Exception:  # noqa: BLE001, S112, RUF100 -- the next wake meets it and says so
                continue
            finally:
                demand.making -= 1
            demand.resting.append(worker)
            if len(demand.resting) < enough:
                self._refill_wanted.set()

    async def close(self) -> None:
        """Ends what rests."""
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.gather(self._refilling, return_exceptions=True)
        self.drop_resting(lambda _: False)

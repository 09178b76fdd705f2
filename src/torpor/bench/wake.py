"""`torpor bench wake`: how fast sleeping instances answer, alone and under load.

Every wake is a request to an instance that was asleep: each case goes round its instances so that
none comes again before it sleeps, and the server's own count of wakes must agree.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from torpor.bench.population import Population, first_error

PAUSE_S = 0.02
"""Between wakes on an idle machine: the standby of the one before is over."""
CLIENTS = 50
BURST = 25
WARM_UP = 3


@dataclass(slots=True)
class Woken:
    """What a case measured."""

    wake_ms: list[float] = field(default_factory=list)
    took_s: float = 0.0
    spent_ms: dict[str, float] = field(default_factory=dict)
    """Processor time of a cycle, by part of the server."""

    @property
    def rate(self) -> float:
        """Cycles a second."""
        return len(self.wake_ms) / self.took_s


async def populate(population: Population, count: int) -> None:
    """Starts instances, and waits until all have answered once and sleep."""
    indexes = list(population.take(count))
    # The first ones alone: the template is made of one of them.
    bursts = [[index] for index in indexes[:WARM_UP]]
    bursts += [indexes[at : at + BURST] for at in range(WARM_UP, len(indexes), BURST)]
    for burst in bursts:
        await population.create(burst)
        with first_error():
            async with asyncio.TaskGroup() as tasks:
                for index in burst:
                    tasks.create_task(population.counters.ask(index))
    await population.settle()


async def alone(population: Population, wakes: int) -> Woken:
    """One after the other, with nothing else going on."""
    woken = Woken()
    turns = _Turns(population)
    began_s = time.monotonic()
    for _ in range(wakes):
        async with turns.next() as index:
            woken.wake_ms.append(await population.counters.ask(index) * 1e3)
        await asyncio.sleep(PAUSE_S)
    woken.took_s = time.monotonic() - began_s
    await population.settle()
    return woken


async def at_rate(population: Population, wakes: int, rate: float) -> Woken:
    """So many a second, whether answers have come or not. Times count from when a wake was due."""
    woken = Woken()
    turns = _Turns(population)
    began_s = time.perf_counter()

    async def wake(due_s: float) -> None:
        async with turns.next() as index:
            await population.counters.ask(index)
        woken.wake_ms.append((time.perf_counter() - due_s) * 1e3)

    with first_error():
        async with asyncio.TaskGroup() as tasks:
            for number in range(wakes):
                due_s = began_s + number / rate
                if (early_s := due_s - time.perf_counter()) > 0:
                    await asyncio.sleep(early_s)
                tasks.create_task(wake(due_s))
    woken.took_s = time.perf_counter() - began_s
    await population.settle()
    return woken


async def by_clients(population: Population, wakes: int, clients: int = CLIENTS) -> Woken:
    """Clients that each wake the next instance as soon as they have their answer."""
    woken = Woken()
    turns, left = _Turns(population), iter(range(wakes))

    async def client() -> None:
        for _ in left:
            async with turns.next() as index:
                woken.wake_ms.append(await population.counters.ask(index) * 1e3)

    began_s = time.monotonic()
    with first_error():
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(client())
    # A cycle is over when the instance is durably asleep again.
    await population.settle()
    woken.took_s = time.monotonic() - began_s
    return woken


class _Turns:
    """Instances by chance, no one again while it is asked, nor before half of the others.

    Where all are being asked or rest, the next turn waits.
    """

    def __init__(self, population: Population) -> None:
        self._waiting = deque(range(population.next))
        random.shuffle(self._waiting)
        self._there = asyncio.Semaphore(len(self._waiting))
        self._recent: deque[int] = deque()
        self._rest = population.next // 2

    @asynccontextmanager
    async def next(self) -> AsyncIterator[int]:
        """One that has its turn while the block lasts."""
        await self._there.acquire()
        self._waiting.rotate(-random.randrange(len(self._waiting)))
        index = self._waiting.popleft()
        try:
            yield index
        finally:
            self._recent.append(index)
            if len(self._recent) > self._rest:
                self._waiting.append(self._recent.popleft())
                self._there.release()

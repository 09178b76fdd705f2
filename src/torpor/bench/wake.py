"""`torpor bench wake`: how fast sleeping instances answer, alone and under load.

Every wake is a request to an instance that was asleep: each case goes round its instances so that
none comes again before it sleeps, and the server's own count of wakes must agree.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
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
    order = _rounds(population, wakes)
    began_s = time.monotonic()
    for index in order:
        woken.wake_ms.append(await population.counters.ask(index) * 1e3)
        await asyncio.sleep(PAUSE_S)
    woken.took_s = time.monotonic() - began_s
    await population.settle()
    return woken


async def at_rate(population: Population, wakes: int, rate: float) -> Woken:
    """So many a second, whether answers have come or not. Times count from when a wake was due."""
    woken = Woken()
    began_s = time.perf_counter()

    async def wake(index: int, due_s: float) -> None:
        await population.counters.ask(index)
        woken.wake_ms.append((time.perf_counter() - due_s) * 1e3)

    with first_error():
        async with asyncio.TaskGroup() as tasks:
            for number, index in enumerate(_rounds(population, wakes)):
                due_s = began_s + number / rate
                if (early_s := due_s - time.perf_counter()) > 0:
                    await asyncio.sleep(early_s)
                tasks.create_task(wake(index, due_s))
    woken.took_s = time.perf_counter() - began_s
    await population.settle()
    return woken


async def by_clients(population: Population, wakes: int, clients: int = CLIENTS) -> Woken:
    """Clients that each wake the next instance as soon as they have their answer."""
    woken = Woken()
    order = iter(_rounds(population, wakes))

    async def client() -> None:
        for index in order:
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


def _rounds(population: Population, wakes: int) -> Sequence[int]:
    """Instances by chance, no one again before half of the others."""
    everyone = list(range(population.next))
    random.shuffle(everyone)
    waiting = deque(everyone)
    recent: deque[int] = deque()
    order = []
    for _ in range(wakes):
        waiting.rotate(-random.randrange(len(waiting)))
        order.append(waiting.popleft())
        recent.append(order[-1])
        if len(recent) > len(everyone) // 2:
            waiting.append(recent.popleft())
    return order

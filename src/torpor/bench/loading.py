"""The creation phase of a density run: instances in bursts, each asked once at once."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from torpor.bench.journal import Journal, Killed, Progress
from torpor.bench.population import Population, first_error
from torpor.bench.server import Target

BURST = 8
"""Instances of one creation request."""
CREATORS = 2
AUDIT_AFTER_MS = 2000
"""Instances are audited, by chance, from this long after their cool-down on."""
RECENT = 11
"""Notes of progress, one a second, that the shown rate is taken from."""


@dataclass(slots=True)
class Loader:
    """Starts instances; what it did in all is in the journal."""

    population: Population
    journal: Journal
    say: Callable[[str], None]
    count: int
    """How many there are to be in the end."""
    in_flight: int
    """Instances that are created and have not answered yet, at most."""
    rate: float = 0.0
    """Instances a second, at most; 0 for as many as there can be."""

    @property
    def reach(self) -> int:
        """How far the numbers under way can be above those that are known."""
        return self.in_flight + BURST * (CREATORS + 1)

    async def grow(self, until: int) -> None:
        """Starts instances until that many have answered. Raises the first error."""
        if self.population.started >= until:
            return
        watching = asyncio.create_task(self._watch())
        room = asyncio.Semaphore(self.in_flight)
        indexes, pace = self.population.take(until), _Pace(self.rate)
        try:
            with first_error():
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(CREATORS):
                        tasks.create_task(self._creator(tasks, indexes, room, pace))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _creator(
        self,
        tasks: asyncio.TaskGroup,
        indexes: Iterator[int],
        room: asyncio.Semaphore,
        pace: "_Pace",
    ) -> None:
        population = self.population

        async def ask(index: int, *, first: bool) -> None:
            try:
                await population.counters.ask(index, counts=first)
                population.started += first
            finally:
                room.release()

        while burst := list(islice(indexes, BURST)):
            for _ in burst:
                await room.acquire()
            await pace.wait(len(burst))
            await population.create(burst)
            for index in burst:
                tasks.create_task(ask(index, first=True))
            if (old := self._resting_one()) is not None:
                await room.acquire()
                tasks.create_task(ask(old, first=False))

    def _resting_one(self) -> int | None:
        """An instance by chance, if it should be asleep."""
        index = random.randrange(self.population.next)
        entry = self.population.ledger.entry(index)
        ripe_ms = entry.at_ms + self.population.shape.cooldown_ms + AUDIT_AFTER_MS
        return index if entry.answered and ripe_ms < self.population.audit.now_ms() else None

    async def _watch(self) -> None:
        """Notes and shows progress each second, and once more at the end."""
        before = self.journal.last(Progress)
        loading_s, loaded = (before.loading_s, before.loaded) if before else (0.0, 0)
        began_s, began_with = time.monotonic(), self.population.started

        def note() -> None:
            started = self.population.started
            self.journal.add(Progress(
                at_ms=self.population.audit.now_ms(),
                started=started,
                loading_s=loading_s + time.monotonic() - began_s,
                loaded=loaded + started - began_with,
            ))  # fmt: skip

        try:
            while True:
                await asyncio.sleep(1)
                note()
                self.say(progress(self.journal.of(Progress)[-RECENT:], self.count))
        finally:
            note()


async def kill_now_and_then(
    population: Population, target: Target, journal: Journal, every_s: float
) -> None:
    """Kills torpord, the proxy or a VM process by chance, until it is cancelled."""
    while True:
        await asyncio.sleep(every_s * random.uniform(0.5, 1.5))
        parts = target.parts()
        choices = {"torpord": parts.torpord, "proxy": parts.proxy}
        if parts.vms:
            choices["vm"] = random.choice(parts.vms)
        what, victim = random.choice(list(choices.items()))
        if victim is None:  # it is just being started again
            continue
        if what == "vm":
            population.audit.vm_killed()
        journal.add(Killed(population.audit.now_ms(), what))
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def progress(recent: list[Progress], count: int) -> str:
    """How far a run is, how fast it was lately, and what that means for the rest."""
    first, last = recent[0], recent[-1]
    words = f"{last.started:,} of {count:,} started"
    lately_s = last.loading_s - first.loading_s
    if last.loaded == first.loaded or lately_s <= 0:
        return words
    rate = (last.loaded - first.loaded) / lately_s
    return f"{words}, {rate:.0f}/s, {duration((count - last.started) / rate)} left"


def duration(seconds: float) -> str:
    """A time as a person says it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


class _Pace:
    """Lets so many a second through."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next_s = time.monotonic()

    async def wait(self, count: int) -> None:
        if self._rate <= 0:
            return
        now_s = time.monotonic()
        begins_s = max(self._next_s, now_s - 1)  # what was missed longer ago is not caught up
        self._next_s = begins_s + count / self._rate
        await asyncio.sleep(max(begins_s - now_s, 0))

"""`torpor bench density`: many instances, each really started, asked once and put into standby.

The run goes up in steps. At each the load stops until all instances sleep; then a random sample is
woken and new ones are started, one at a time. The end is the audit. All that is known is in the
ledger and the journal, so an interrupted run goes on where it was.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from torpor.bench import meters
from torpor.bench.audit import Audit, clock
from torpor.bench.counter import Counters, NoAnswerError
from torpor.bench.http import Client
from torpor.bench.journal import Baseline, Final, Journal, Killed, Settings, Spent, Step
from torpor.bench.ledger import Ledger
from torpor.bench.loading import Loader, kill_now_and_then
from torpor.bench.population import Population, for_each, raise_unless_made
from torpor.bench.server import Api, Shape, Target
from torpor.errors import TorporError

WORKERS = 50
"""Requests at once in the audit."""
AUDIT_EVERY = 10
"""At the end, one instance in this many is woken and asked."""
BUSY_EVERY = 100
BUSY_REQUESTS = 100
BUSY_COOLDOWN_MS = 1000
"""So that these requests find their instance awake."""
TELL_S = 5.0
"""Between two lines of progress."""
MANY = 20
"""Wrong answers that are shown at once."""
WARM_UP = 3
"""Instances that make image, template and pool ready; they are not part of the run."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is made."""

    count: int
    rate: float = 0.0
    """Instances a second, at most; 0 for as many as there can be."""
    sample: int = 200
    rest_s: float = 10.0
    """How long the server is watched at rest, at each step."""
    faults_s: float = 0.0
    """About this often a process of the server is killed; 0 for never."""
    in_flight: int = 16


def steps(count: int) -> list[int]:
    """At how many instances a run measures: at a thousand, then at every twentieth part."""
    width = max(1000, count // 20)
    return sorted(n for n in {1000, *range(width, count, width), count} if n <= count)


@dataclass(slots=True)
class Density:
    """One run, or a part of it. `say` is told of progress."""

    target: Target
    shape: Shape
    options: Options
    settings: Settings
    journal: Journal
    ledger: Ledger
    say: Callable[[str], None]
    population: Population = field(init=False)
    loader: Loader = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        host, _, port = self.target.proxy.rpartition(":")
        audit = Audit(self.ledger, clock(self.settings.began_s))
        audit.kills_ms = [one.at_ms for one in self.journal.of(Killed) if one.what == "vm"]
        proxy = Client(host, int(port), limit=options.in_flight)
        counters = Counters(
            proxy, audit, self.settings.name, self.target.suffix, faults=options.faults_s > 0
        )
        self.population = Population(Api(self.target), counters, self.ledger, self.shape)
        self.loader = Loader(
            self.population,
            self.journal,
            self.say,
            options.count,
            options.in_flight,
            options.rate,
        )

    async def run(self) -> Final:
        """The whole run, or what is left of it. Raises TorporError, NoAnswerError, LostError."""
        population, sample = self.population, self.options.sample
        try:
            await self._prepare()
            measured = {step.instances for step in self.journal.of(Step)}
            for number in steps(self.options.count):
                if number not in measured:
                    await self._grow(number - min(sample, number // 2))
                    await self._measure(number)
            return await self._finish()
        finally:
            for message in population.audit.wrong[:MANY]:
                self.say(f"WRONG: {message}")
            population.api.close()
            population.counters.proxy.close()

    async def _prepare(self) -> None:
        population = self.population
        many = 2 * (self.options.count + 10_000)
        await population.api.set_quotas(
            {"instances": many, "service_groups": many, "live_instances": many}
        )
        if self.journal.last(Baseline) is not None:
            await population.recall(self.loader.reach)
            self.say(f"going on with {population.started:,} instances that were started before")
            return
        self.say("starting the first instances, from which the template is made")
        for number in range(WARM_UP):
            name = f"{self.settings.name}-warm-{number}"
            (made,) = await population.api.create([self.shape.spec(name)])
            raise_unless_made(made)
            answer = await population.counters.proxy.get(host=f"{name}.{self.target.suffix}")
            if answer.status != 200:
                raise NoAnswerError(f"{name}: answered {answer.status}: {answer.body[:200]!r}")
            await population.settle()
        counts = await population.api.counts()
        self.journal.add(Baseline(sum(counts.values()), self._disk_bytes()))

    async def _grow(self, until: int) -> None:
        """Starts instances, with what that takes of the processors until they sleep."""
        started, before = self.population.started, meters.spent_s(self.target.parts())
        async with self._faults():
            await self.loader.grow(until)
        await self.population.settle()
        after = meters.spent_s(self.target.parts())
        if self.population.started > started:
            seconds = {part: max(after[part] - before[part], 0) for part in after}
            self.journal.add(Spent(self.population.started - started, seconds))

    @asynccontextmanager
    async def _faults(self) -> AsyncIterator[None]:
        """Kills processes meanwhile, if that is wanted."""
        if not self.options.faults_s:
            yield
            return
        killer = asyncio.create_task(
            kill_now_and_then(self.population, self.target, self.journal, self.options.faults_s)
        )
        try:
            yield
        finally:
            killer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await killer

    async def _measure(self, number: int) -> None:
        """Samples while all others sleep, then what the server costs while nothing happens."""
        population = self.population
        self.say(f"measuring at {number:,}")
        asleep = range(population.next)
        chosen = random.sample(asleep, min(self.options.sample, len(asleep)))
        wakes = [await population.counters.ask(index) * 1e3 for index in chosen]
        await population.settle()
        starts = []
        for index in population.take(number):
            began_s = time.perf_counter()
            await population.create([index])
            await population.counters.ask(index)
            starts.append((time.perf_counter() - began_s) * 1e3)
            population.started += 1
        counts = await population.settle()
        baseline = self.journal.last(Baseline)
        expected = number + (baseline.instances if baseline else 0)
        if counts != {"standby": expected}:
            raise TorporError(f"{expected} instances must be in standby, but there are {counts}")
        await self._at_rest(number, starts, wakes)

    async def _at_rest(self, number: int, starts: list[float], wakes: list[float]) -> None:
        parts = self.target.parts()
        everything = [one for one in (parts.torpord, parts.proxy, *parts.vms) if one]
        before_s, began_s = sum(map(meters.cpu_s, everything)), time.monotonic()
        await asyncio.sleep(self.options.rest_s)
        used_s = sum(map(meters.cpu_s, everything)) - before_s
        self.journal.add(Step(
            instances=number,
            start_ms=starts,
            wake_ms=wakes,
            disk_bytes=self._disk_bytes(),
            host_used_bytes=meters.host_used_bytes(),
            torpord_rss_bytes=meters.rss_bytes(parts.torpord),
            proxy_rss_bytes=meters.rss_bytes(parts.proxy),
            vms=len(parts.vms),
            vms_private_bytes=meters.private_bytes(parts.vms),
            rest_s=time.monotonic() - began_s,
            rest_cpu_s=max(used_s, 0.0),
            store=meters.store_bytes(self.target.data_dir) if self.target.data_dir else {},
        ))  # fmt: skip

    def _disk_bytes(self) -> int:
        return meters.disk_bytes(self.target.data_dir) if self.target.data_dir else 0

    async def _finish(self) -> Final:
        """The audit of every tenth instance, busy instances, the list, and a restart."""
        population, counters = self.population, self.population.counters
        await population.settle()
        chosen = range(0, self.options.count, AUDIT_EVERY)
        self.say(f"audit of {len(chosen):,} instances")
        began_s = time.monotonic()
        await self._each("audited", chosen, lambda index: counters.ask(index, counts=False))
        audit_s = time.monotonic() - began_s
        await population.settle()

        async def keep_busy(index: int) -> None:
            for _ in range(BUSY_REQUESTS):
                await counters.ask(index)

        busy = range(0, self.options.count, BUSY_EVERY)
        self.say(f"{BUSY_REQUESTS} requests to {len(busy):,} instances each")
        await population.set_cooldown(busy, BUSY_COOLDOWN_MS)
        await self._each("asked", busy, keep_busy)
        await population.settle()
        busy_disk_bytes = self._disk_bytes()
        self.say("reading the list of all instances")
        wrong = await population.check_list(self.options.count)
        restart_s = await self._restart()
        audit = population.audit
        wrong += audit.wrong
        if audit.fell_back > len(audit.kills_ms):
            wrong.append(
                f"{audit.fell_back} instances fell back, but only {len(audit.kills_ms)} VM "
                "processes were killed"
            )
        final = Final(
            audited=len(chosen),
            audit_s=audit_s,
            answers=audit.answers,
            fell_back=audit.fell_back,
            lost=counters.lost,
            refused=counters.refused,
            wrong=wrong,
            busy_instances=len(busy),
            busy_disk_bytes=busy_disk_bytes,
            restart_s=restart_s,
        )
        self.journal.add(final)
        return final

    async def _each(
        self, done: str, indexes: Sequence[int], work: Callable[[int], Awaitable[object]]
    ) -> None:
        """Does `work` with each of them, WORKERS at a time, and tells how many are `done`."""
        finished = 0
        told_s = time.monotonic()

        async def one(index: int) -> None:
            nonlocal finished, told_s
            await work(index)
            finished += 1
            if time.monotonic() >= told_s + TELL_S:
                told_s = time.monotonic()
                self.say(f"{finished:,} of {len(indexes):,} {done}")

        await for_each(indexes, one, WORKERS)

    async def _restart(self) -> float | None:
        """Seconds from killing torpord to the answer of an instance that slept."""
        torpord = self.target.parts().torpord
        if torpord is None:
            return None
        self.say("killing torpord, and asking an instance")
        self.population.counters.faults = True
        index = random.randrange(self.options.count)
        began_s = time.monotonic()
        os.kill(torpord.pid, signal.SIGKILL)
        await self.population.counters.ask(index)
        return time.monotonic() - began_s

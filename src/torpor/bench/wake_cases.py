"""The cases of `torpor bench wake`, and what they are held against."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from torpor.bench import meters, wake
from torpor.bench.apps import App
from torpor.bench.audit import Audit
from torpor.bench.counter import Counters
from torpor.bench.http import Client, LostError
from torpor.bench.ledger import Ledger
from torpor.bench.population import Population, raise_unless_made
from torpor.bench.report import Bar, Report, WrongAnswerError
from torpor.bench.server import BUSY_STATES, Api, Shape, Target, WrongServerError

UNDER_LOAD = 300.0
"""Cycles a second beside which wakes are measured."""
OTHER_INSTANCES = 20
"""Of each program that does not count, and where few are enough."""
FEW_WAKES = 500
TEMPLATES = 200
RESTING = 20
FRESH_CONFIG = "[vms]\nreuse = false\n"
TEMPLATES_CONFIG = f"[vms]\nresting = {RESTING}\n"
COOL_S = 60.0
"""Until snapshots that nobody uses are moved, and for a server to come back."""
MB = 1e6


def lower_config(tier: Path) -> str:
    """config.toml of a server whose snapshots go to the lower tier as soon as may be."""
    # Templates that processes rest at stay where they are: those go first.
    return (
        f'[server]\nlower_tier = "{tier}"\n[vms]\nresting_s = 1\n'
        "[keep]\nlower_after_s = 0.5\nsweep_s = 1\n"
    )


@dataclass(slots=True)
class Cases:
    """A run of cases against one server."""

    report: Report
    target: Target
    directory: Path
    say: Callable[[str], None]
    wakes: int
    """Of each case."""
    instances: int
    histogram: dict[str, list[float]] = field(default_factory=dict)

    @property
    def few(self) -> int:
        """Wakes of a case that takes long or whose tail is of no interest."""
        return min(self.wakes, FEW_WAKES)

    async def counter(self, shape: Shape) -> None:
        """The application that counts: alone, under load, and as many cycles as there can be."""
        async with self._population("a", replace(shape, cooldown_ms=1)) as population:
            await wake.populate(population, self.instances)
            woken = await self._checked(population, lambda: wake.alone(population, self.wakes))
            self._row("alone, cool-down 1 ms", woken, p50=1.5, p99=5, p999=10)
            woken = await self._checked(
                population, lambda: wake.at_rate(population, self.wakes, UNDER_LOAD)
            )
            self._row(f"at {UNDER_LOAD:.0f}/s, cool-down 1 ms", woken)
            woken = await self._checked(population, lambda: wake.by_clients(population, self.wakes))
            name = f"{wake.CLIENTS} clients, cool-down 1 ms"
            self._row(name, woken)
            self.report.value(f"{name}: cycles", woken.rate, "1/s", bar=Bar(500, at_least=True))
        async with self._population("b", replace(shape, cooldown_ms=1000)) as population:
            # Twice as many, so that each one sleeps before it is asked again.
            await wake.populate(population, 2 * self.instances)
            name = f"{wake.CLIENTS} clients, cool-down 1000 ms"
            with self._memory_of_vms(f"{name}: memory of VM processes"):
                woken = await self._checked(
                    population, lambda: wake.by_clients(population, self.wakes)
                )
            self._row(name, woken)
            self.report.value(f"{name}: cycles", woken.rate, "1/s", bar=Bar(500, at_least=True))

    async def fresh(self, shape: Shape) -> None:
        """A server that never uses a VM process twice."""
        async with self._population("fresh", shape) as population:
            await wake.populate(population, OTHER_INSTANCES)
            woken = await self._checked(population, lambda: wake.alone(population, self.few))
            self._row("alone, fresh VM processes, cool-down 1 ms", woken, p50=8)

    async def templates(self, shape: Shape) -> None:
        """Many templates, of which few have VM processes at rest at a time."""
        async with self._population("templates", shape) as population:
            templates = min(TEMPLATES, self.instances)
            population.environment = lambda index: {"TEMPLATE": str(index % templates)}
            # The second instance of a configuration is the first that a template is made for.
            await wake.populate(population, 2 * templates)
            woken = await self._checked(population, lambda: wake.alone(population, self.few))
            self._row(f"{templates} templates, {RESTING} processes at rest", woken)

    async def lower(self, shape: Shape) -> None:
        """Instances with a whole state of their own each, which went to the lower tier."""
        async with self._population("lower", shape) as population:
            population.environment = lambda index: {"STATE": str(index)}
            await wake.populate(population, OTHER_INSTANCES)
            await self._cooled()
            # What is unpacked already stays in memory otherwise.
            torpord = self.target.parts().torpord
            assert torpord is not None  # noqa: S101 -- a server of the benchmark's own
            os.kill(torpord.pid, signal.SIGKILL)
            await self._answers(population)
            # Each at most once: it is unpacked after that.
            wakes = min(self.few, OTHER_INSTANCES // 2)
            woken = await self._checked(population, lambda: wake.alone(population, wakes))
            self._row("whole states on the lower tier, first wake", woken)

    async def _cooled(self) -> None:
        """Until all that is in files is on the lower tier."""
        assert self.target.data_dir is not None  # noqa: S101 -- a server of the benchmark's own
        upper, ends_s = self.target.data_dir / "blobs", time.monotonic() + COOL_S
        while any(path.is_file() for path in upper.glob("[0-9a-f][0-9a-f]/*")):
            if time.monotonic() > ends_s:
                raise WrongAnswerError("snapshots that nobody uses stay on the upper tier")
            await asyncio.sleep(0.5)

    async def _answers(self, population: Population) -> None:
        """Until torpord is there again."""
        ends_s = time.monotonic() + COOL_S
        while time.monotonic() < ends_s:
            try:
                await population.api.counts()
                await population.api.wakes()
            except (LostError, OSError, WrongServerError):
                await asyncio.sleep(0.1)
            else:
                return
        raise WrongAnswerError("torpord does not come back")

    async def other(self, app: App, shape: Shape) -> None:
        """Another program: one after the other, each answer as the first."""
        api, proxy = Api(self.target), self._proxy()
        names = [f"{app.name.replace(':', '-')}-{number}" for number in range(OTHER_INSTANCES)]
        try:
            hosts = [f"{name}.{self.target.suffix}" for name in names]
            for name in names:
                (made,) = await api.create([shape.spec(name)])
                raise_unless_made(made)
                first = await proxy.get(host=f"{name}.{self.target.suffix}")
                if first.status >= 400:
                    raise WrongAnswerError(f"{app.name} answered {first.status} {first.body!r}")
                await self._settled(api)
            before, times = await api.wakes(), []
            for number in range(self.few):
                answer = await proxy.get(host=hosts[number % len(hosts)])
                if (answer.status, answer.body) != (first.status, first.body):
                    raise WrongAnswerError(
                        f"{app.name} answered {answer.status} {answer.body[:100]!r} instead of "
                        f"{first.status} {first.body[:100]!r}"
                    )
                times.append(answer.took_s * 1e3)
                await self._settled(api)
            woken = wake.Woken(times, 1.0)
            self._count(app.name, self.few, await api.wakes() - before)
            self._row(f"{app.name}: wake, cool-down 1 ms", woken)
        finally:
            proxy.close()
            api.close()

    @asynccontextmanager
    async def _population(self, name: str, shape: Shape) -> AsyncIterator[Population]:
        """Instances of one kind, whose every answer is judged; deleted afterwards."""
        count = max(2 * self.instances, 2 * TEMPLATES)
        ledger = Ledger(self.directory / f"ledger-{name}-{time.time_ns()}", count)
        api, proxy = Api(self.target), self._proxy()
        counters = Counters(proxy, Audit(ledger), f"wake-{name}", self.target.suffix)
        population = Population(api, counters, ledger, shape)
        try:
            yield population
            for message in population.audit.wrong:
                self.report.wrong_answer(message)
        finally:
            proxy.close()
            api.close()
            ledger.close()

    def _proxy(self) -> Client:
        host, _, port = self.target.proxy.rpartition(":")
        return Client(host, int(port), limit=512)

    async def _checked(
        self, population: Population, work: Callable[[], Awaitable[wake.Woken]]
    ) -> wake.Woken:
        """Does a case, and compares its requests with the wakes that the server counted."""
        before = await population.api.wakes()
        spent = meters.spent_s(self.target.parts())
        woken = await work()
        after = meters.spent_s(self.target.parts())
        woken.spent_ms = {
            part: 1e3 * (after[part] - spent[part]) / len(woken.wake_ms) for part in after
        }
        counted = await population.api.wakes() - before
        self._count(population.counters.name, len(woken.wake_ms), counted)
        return woken

    def _count(self, what: str, requests: int, wakes: int) -> None:
        if wakes < requests:
            self.report.wrong_answer(f"{what}: {requests} requests were only {wakes} wakes")

    def _row(
        self,
        case: str,
        woken: wake.Woken,
        p50: float | None = None,
        p99: float | None = None,
        p999: float | None = None,
    ) -> None:
        self.histogram[case] = woken.wake_ms
        values = woken.wake_ms
        row = self.report.samples(case, values, "ms", bar=Bar(p50) if p50 else None)
        self.say(row.line("wake"))
        for part, each_ms in woken.spent_ms.items():
            self.report.value(f"{case}: processor of {part}", each_ms, "ms")
        if p99 is not None:
            self.report.value(f"{case}: p99", row.p99, "ms", bar=Bar(p99))
        if p999 is not None:
            self.report.value(f"{case}: p99.9", row.p999, "ms", bar=Bar(p999))

    @contextmanager
    def _memory_of_vms(self, case: str) -> Iterator[None]:
        """The most that VM processes use meanwhile, looked at twice a second."""
        most = 0

        async def look() -> None:
            nonlocal most
            while True:
                most = max(most, meters.anonymous_bytes(self.target.parts().vms))
                await asyncio.sleep(0.5)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
        self.report.value(case, most / MB, "MB")

    async def _settled(self, api: Api) -> None:
        ends_s = time.monotonic() + 60
        while not BUSY_STATES.isdisjoint(await api.counts()):
            if time.monotonic() > ends_s:
                raise WrongAnswerError("an instance does not go to standby")
            await asyncio.sleep(0.005)

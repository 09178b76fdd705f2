"""`torpor bench peers`: the same program as a process, in containers, and as a microVM."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torpor.bench import native
from torpor.bench.apps import App
from torpor.bench.http import Client
from torpor.bench.population import raise_unless_made
from torpor.bench.report import Report, WrongAnswerError
from torpor.bench.server import BUSY_STATES, Api, Shape, Target
from torpor.bench.timing import private_dirty_kib

STOPPED_S = 0.05
"""How long a process is left stopped before it is continued."""
COLD_RUNS = 10
RUNTIMES = {
    "crun": ("crun", "--cgroup-manager=disabled"),
    "runsc": ("runsc", "--network=host", "--ignore-cgroups"),
}


def outside(report: Report, app: App, scratch: Path, runs: int) -> None:
    """Everything that is no microVM."""
    with native.mounted(app.image, scratch) as root:
        log, env = scratch / "log", root.environment()
        times = []
        for _ in range(runs):
            with native.started(root.command(), app.port, log, env) as (_, took_s):
                times.append(took_s * 1e3)
        report.samples("process: start to answer", times, "ms")
        native.oci_bundle(root, scratch / "bundle")
        native.hide_second_hierarchy()
        for name, command in RUNTIMES.items():
            if shutil.which(name) is None:
                print(f"{name} is not installed: no row of it")
                continue
            times = [_contained(command, app, scratch, number) * 1e3 for number in range(runs)]
            report.samples(f"{name}: start to answer", times, "ms")
        with native.started(root.command(), app.port, log, env) as (pid, _):
            _process(report, pid, app, runs)


def _contained(command: Sequence[str], app: App, scratch: Path, number: int) -> float:
    """Seconds from starting a container to its first answer."""
    name = f"bench-{os.getpid()}-{number}"
    words = [*command, f"--root={scratch / 'runtime'}"]
    try:
        start = [*words, "run", f"--bundle={scratch / 'bundle'}", name]
        with native.started(start, app.port, scratch / "log") as (_, took_s):
            return took_s
    finally:
        subprocess.run([*words, "delete", "--force", name], check=False, capture_output=True)


def _process(report: Report, pid: int, app: App, runs: int) -> None:
    """A process that is there: how it answers, and how after it was stopped."""

    def timed() -> float:
        began_s = time.perf_counter()
        native.ask(app.port)
        return (time.perf_counter() - began_s) * 1e3

    report.samples("process: running, answer", [timed() for _ in range(runs)], "ms")
    wakes = []
    for _ in range(runs):
        os.kill(pid, signal.SIGSTOP)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.0005)
        time.sleep(STOPPED_S)
        began_s = time.perf_counter()
        os.kill(pid, signal.SIGCONT)
        native.ask(app.port)
        wakes.append((time.perf_counter() - began_s) * 1e3)
    report.samples("process: SIGCONT to answer", wakes, "ms")
    report.value("process: memory while stopped", private_dirty_kib(pid) / 1024, "MiB")


async def microvms(report: Report, target: Target, shape: Shape, runs: int) -> None:
    """The same as instances of a server; cool-down 1 ms, one after the other."""
    host, _, port = target.proxy.rpartition(":")
    # A connection of its own for each request, as the others have it.
    api = Api(target)
    try:
        peers = _MicroVms(api, host, int(port), target, shape)
        cold = []
        for number in range(COLD_RUNS):
            # An environment of its own makes it a configuration that has no template.
            _, took_ms = await peers.start({"TORPOR_BENCH": f"cold-{number}"})
            cold.append(took_ms)
        report.samples("torpor: first of its kind, start to answer", cold, "ms")
        for _ in range(2):
            await peers.start({})
        started = [await peers.start({}) for _ in range(runs)]
        report.samples("torpor: start to answer", [took_ms for _, took_ms in started], "ms")
        wakes = [await peers.ask(name) for name, _ in started]
        report.samples("torpor: wake to answer", wakes, "ms")
        peers.shape = replace(shape, policy="off")
        name, _ = await peers.start({}, settle=False)
        running = [await peers.ask(name, settle=False) for _ in range(runs)]
        report.samples("torpor: running, answer", running, "ms")
    finally:
        api.close()


class _MicroVms:
    """Instances that are started and asked one at a time."""

    def __init__(self, api: Api, host: str, port: int, target: Target, shape: Shape) -> None:
        self.shape = shape
        self._api = api
        self._address = host, port
        self._target = target
        self._number = 0

    async def start(self, env: dict[str, str], *, settle: bool = True) -> tuple[str, float]:
        """Makes an instance and asks it: its name, and the milliseconds of both."""
        self._number += 1
        name = f"peer-{os.getpid()}-{self._number}"
        began_s = time.perf_counter()
        (made,) = await self._api.create([self.shape.spec(name, env)])
        raise_unless_made(made)
        await self.ask(name, settle=False)
        took_ms = (time.perf_counter() - began_s) * 1e3
        if settle:
            await self._settle()
        return name, took_ms

    async def ask(self, name: str, *, settle: bool = True) -> float:
        """Milliseconds of one request on a new connection."""
        proxy = Client(*self._address)
        began_s = time.perf_counter()
        answer = await proxy.get(host=f"{name}.{self._target.suffix}")
        took_ms = (time.perf_counter() - began_s) * 1e3
        proxy.close()
        if answer.status != 200:
            raise WrongAnswerError(f"{name} answered {answer.status}: {answer.body[:200]!r}")
        if settle:
            await self._settle()
        return took_ms

    async def _settle(self) -> None:
        ends_s = time.monotonic() + 60
        while not BUSY_STATES.isdisjoint(await self._api.counts()):
            if time.monotonic() > ends_s:
                raise WrongAnswerError("an instance does not go to standby")
            await asyncio.sleep(0.01)

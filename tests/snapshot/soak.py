"""`make soak`, second part: cycles of restore, request, standby and reset, and many clones at once.

Every answer must be right, whatever process gives it and whatever was killed before; memory of VM
processes and time of a cycle must not grow. SOAK_CYCLES (100,000) or SOAK_MINUTES (10) ends it,
whichever comes first; SOAK_CLONES (500) run at once. Cycles that the same binary has gone through
before count.
"""

import asyncio
import contextlib
import json
import os
import random
import secrets
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.kept import build
from tests.harness import REPOSITORY
from tests.kvm import kvm_problem
from tests.rootfs.build import root_image
from tests.snapshot.vms import Sibling, Template, make_template
from torpor.vmprocess import Launched, launch

PROGRAM = (Path(__file__).parent / "programs/obey.py").read_text()
INSTANCES = 20
LARGE_EVERY = 2000
"""Cycles between instances that grow by 64 MiB of random bytes, and are forgotten then."""
KILLED_SHARE = 0.002
MAY_GROW_BYTES = 32 << 20
KEPT = REPOSITORY / "build" / "soak" / "cycles.json"


def cycles_before() -> int:
    """What earlier runs of this binary have gone through without a fault."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return int(kept.get(build(), 0))


def keep(count: int) -> None:
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps({build(): count}))


@dataclass
class Instance:
    """What an instance must answer next."""

    uuid: str
    generation: int = 0
    count: int = 0
    delta: bytes | None = None


class Worker:
    """A VM process, replaced when it was killed or retired."""

    def __init__(self, directory: Path, template: Template) -> None:
        self._directory = directory
        self._template = template
        self._launched: Launched | None = None
        self._vm: Sibling | None = None
        self.replaced = 0
        self.must_replace = False
        self.first_bytes = 0
        self.grown_bytes = 0

    async def vm(self) -> Sibling:
        if self._vm is None:
            path = self._directory / f"{secrets.token_hex(4)}.sock"
            self._launched = await launch(path)
            self._vm = await Sibling.prepare(self._launched.process, self._template)
            self.first_bytes = 0
        return self._vm

    def watch(self) -> None:
        """Note how much memory a process at rest has more than after its first cycle."""
        if self._launched is not None:
            used = private_bytes(self._launched.process.pid)
            self.first_bytes = self.first_bytes or used
            self.grown_bytes = max(self.grown_bytes, used - self.first_bytes)

    def kill(self) -> None:
        """In the middle of something: `replace` it when that has failed."""
        if self._launched is not None:
            self._launched.child.send_signal(signal.SIGKILL)

    def replace(self) -> None:
        """The next cycle has a new process."""
        if self._launched is not None:
            self._launched.process.close()
            self._launched.child.send_signal(signal.SIGKILL)
            self._launched.child.wait()
            self._launched.path.unlink(missing_ok=True)
        if self._vm is not None:
            self._vm.peer.close()
        self._launched = self._vm = None
        self.must_replace = False
        self.replaced += 1


def private_bytes(pid: int) -> int:
    """Memory that a process shares with nobody."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    return 0


async def cycle(worker: Worker, instance: Instance, *, large: bool, kill: bool) -> None:
    """One wake, some requests, standby, reset. What is killed on the way never happened."""
    vm = await worker.vm()
    with contextlib.suppress(ConnectionError, EOFError):
        if kill:
            asyncio.get_running_loop().call_later(random.random() / 100, worker.kill)
            worker.must_replace = True
        await vm.wake(instance.uuid, instance.generation, instance.delta)
        count = instance.count
        for _ in range(1 + instance.generation % 3):
            count += 1
            answer = await vm.peer.ask("count")
            if answer != str(count):
                raise AssertionError(f"{instance}: {answer} instead of {count}")
        if large:
            await vm.peer.ask("dirty 64")
        stored = await vm.process.standby(instance.generation + 1, within_s=60)
        with os.fdopen(stored.descriptor, "rb") as file:
            file.seek(0)
            delta = file.read()
        resting = await vm.process.reset()
        if not large:
            instance.delta, instance.count = delta, count
            instance.generation += 1
        worker.must_replace = worker.must_replace or not resting
    if kill:
        # The blow may still be to come; it must not fall on the next one.
        await asyncio.sleep(0.02)
    if worker.must_replace:
        worker.replace()


async def cycles(directory: Path, template: Template, limit: int, until_s: float) -> list[str]:
    """Returns what was wrong."""
    chance = random.Random(1)
    instances = [Instance(secrets.token_hex(16)) for _ in range(INSTANCES)]
    workers = [Worker(directory, template) for _ in range(2)]
    took_ms: list[float] = []
    before, killed = cycles_before(), 0
    try:
        while len(took_ms) < limit and time.monotonic() < until_s:
            worker = chance.choice(workers)
            number = len(took_ms)
            large, kill = number % LARGE_EVERY == LARGE_EVERY // 2, chance.random() < KILLED_SHARE
            killed += kill
            began = time.perf_counter()
            await cycle(worker, chance.choice(instances), large=large, kill=kill)
            took_ms.append((time.perf_counter() - began) * 1e3)
            if number % 100 == 99:
                worker.watch()
                keep(before + len(took_ms))
    finally:
        for worker in workers:
            worker.replace()
    keep(before + len(took_ms))
    grown = max(worker.grown_bytes for worker in workers)
    tenth = max(1, len(took_ms) // 10)
    p99s = [
        statistics.quantiles(took_ms[at : at + tenth], n=100)[-1]
        for at in range(0, len(took_ms) - tenth + 1, tenth)
        if tenth > 1
    ]
    print(
        f"soak: {len(took_ms)} cycles ({before + len(took_ms)} in all), {killed} processes killed, "
        f"{sum(worker.replaced for worker in workers)} replaced, grown by {grown >> 10} KiB; "
        f"p50 {statistics.median(took_ms):.1f} ms, p99 of each tenth "
        + " ".join(f"{value:.0f}" for value in p99s)
    )
    return [f"a VM process grew by {grown} bytes"] if grown > MAY_GROW_BYTES else []


async def clones(directory: Path, template: Template, count: int) -> None:
    """So many VMs of one template that run at once, each with its own memory."""
    before = available_bytes()
    running: list[tuple[Launched, Sibling]] = []
    try:
        for _ in range(count):
            launched = await launch(directory / f"{secrets.token_hex(4)}.sock")
            vm = await Sibling.prepare(launched.process, template)
            running.append((launched, vm))
            await vm.wake(secrets.token_hex(16), 0)
        for turn in range(1, 4):
            for _, vm in running:
                if (answer := await vm.peer.ask("count")) != str(turn):
                    raise AssertionError(f"{answer} instead of {turn}")
        private = sum(private_bytes(launched.process.pid) for launched, _ in running)
        print(
            f"soak: {count} clones at once: {private // count >> 10} KiB private each, "
            f"{(before - available_bytes()) // count >> 10} KiB of the host each"
        )
    finally:
        for launched, vm in running:
            vm.peer.close()
            launched.process.close()
            launched.child.kill()
        for launched, _ in running:
            launched.child.wait()


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


async def soak(limit: int, minutes: float, count: int) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        argv = ["python3", "-u", "-c", PROGRAM]
        template = await make_template(directory, root_image("python"), argv)
        try:
            await clones(directory, template, count)
            return await cycles(directory, template, limit, time.monotonic() + 60 * minutes)
        finally:
            template.close()


def main() -> int:
    problem = kvm_problem()
    if problem is not None:
        print(f"soak: {problem}", file=sys.stderr)
        return 1
    limit = int(os.environ.get("SOAK_CYCLES", "100000")) - cycles_before()
    if limit < 1:
        print(f"soak: {cycles_before()} cycles were run before")
        return 0
    wrong = asyncio.run(
        soak(
            limit,
            float(os.environ.get("SOAK_MINUTES", "10")),
            int(os.environ.get("SOAK_CLONES", "500")),
        )
    )
    for text in wrong:
        print(f"soak: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""`make bench-api`: torpord with a million sleeping instances in its store.

The instances are rows in standby without content: what is measured here reads none. Clients run on
the same processors as the server.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import httpx
from msgspec.structs import replace

from tests.harness import REPOSITORY
from tests.images.single import add_single_file_image
from torpor.bench.report import Bar, Report, refuse_debug_build
from torpor.store import InstanceRow, NewInstance, Page, State, Store

INSTANCES = int(os.environ.get("BENCH_INSTANCES", "1000000"))
BATCH = 5000
READS = 1000
BULK = 1000
STARTS = 5
CHANGES = 20_000
PARALLEL = 64


async def fill(data: Path, report: Report) -> list[str]:
    """A million rows, and durable changes of some; gives a sample of uuids."""
    store = Store(data)
    owner = store.owners.all()[0]
    sample: list[str] = []
    config = json.dumps({"image": "web", "env": {"USER_ID": "1234567"}}).encode()
    began_s = time.monotonic()
    for first in range(0, INSTANCES, BATCH):
        new = [
            NewInstance(
                uuid=str(uuid4()),
                name=f"instance-{number}",
                state="standby",
                memory_mb=128,
                vcpus=1,
                created_ms=1_700_000_000_000 + number,
                config=config,
                tags=("thousandth",) if number % 1000 == 0 else (),
            )
            for number in range(first, min(first + BATCH, INSTANCES))
        ]
        await store.instances.add(owner.id, new)
        sample += [new[0].uuid, new[-1].uuid]
    report.value("rows recorded", INSTANCES / (time.monotonic() - began_s), "1/s")

    rows = store.instances.page(owner.id, "instance", Page(count=PARALLEL))

    async def change(row: InstanceRow) -> None:
        for number in range(CHANGES // PARALLEL):
            state: State = "running" if number % 2 else "standby"
            (written,) = await store.instances.update([replace(row, state=state)])
            if not isinstance(written, InstanceRow):
                report.wrong_answer(f"a state change failed: {written}")
                return
            row = written

    began_s = time.monotonic()
    await asyncio.gather(*(change(row) for row in rows))
    rate = len(rows) * (CHANGES // PARALLEL) / (time.monotonic() - began_s)
    report.value("durable state changes", rate, "1/s", bar=Bar(2000, at_least=True))
    await store.instances.update(
        [replace(row, state="standby") for row in store.instances.in_motion()]
    )
    store.close()
    return sample


class Server:
    """A torpord process, until the block ends."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def __enter__(self) -> "Server":
        began_s = time.monotonic()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torpor.torpord",
                f"--data={self._data}",
                "--listen=127.0.0.1:0",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split()[1]
        headers = {"Authorization": f"Bearer {(self._data / 'token').read_text().strip()}"}
        httpx.get(f"{self.url}/v1/instances?count=100", headers=headers).raise_for_status()
        self.start_s = time.monotonic() - began_s
        self.start_cpu_s = self._cpu_s()
        return self

    def rss_mb(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def _cpu_s(self) -> float:
        """Processor time that it has taken."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=60)


async def requests(report: Report, server: Server, token: str, sample: list[str]) -> None:
    """What clients see."""
    headers = {"Authorization": f"Bearer {token}"}
    chance = random.Random(7)
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=300) as http:

        async def timed(case: str, paths: list[str], bar: Bar | None) -> None:
            times = []
            for path in paths:
                began_ns = time.perf_counter_ns()
                answer = await http.get(path)
                times.append((time.perf_counter_ns() - began_ns) / 1e6)
                if answer.status_code != 200 or answer.json()["status"] != "success":
                    report.wrong_answer(f"{path}: {answer.text[:200]}")
            report.samples(case, times, "ms", bar=bar)

        limit = Bar(10, statistic="p99")
        uuids = [chance.choice(sample) for _ in range(READS)]
        await timed("get by uuid", [f"/v1/instances/{uuid}" for uuid in uuids], limit)
        names = [f"instance-{chance.randrange(INSTANCES)}" for _ in range(READS)]
        await timed("get by name", [f"/v1/instances?name={name}" for name in names], limit)
        pages = [f"/v1/instances?count=100&from={uuid}" for uuid in uuids]
        await timed("list 100", pages, limit)
        tagged = [f"{page}&tags=thousandth" for page in pages]
        await timed("list 100 with a tag", tagged, limit)
        await timed("list 100 in a state", [f"{page}&state=standby" for page in pages], limit)
        await timed("counts by state", ["/torpor/v1/status"] * 100, limit)
        report.value("memory with all of them", server.rss_mb(), "MB", bar=Bar(150))

        rates = []
        for _ in range(10):
            body = json.dumps([{"image": "web"}] * BULK)
            began_s = time.monotonic()
            answer = await http.post("/v1/instances", content=body)
            rates.append(BULK / (time.monotonic() - began_s))
            if answer.json()["status"] != "success":
                report.wrong_answer(f"create: {answer.text[:200]}")
        report.samples(f"create in arrays of {BULK}", rates, "1/s", bar=Bar(3000, at_least=True))
        report.value("memory after creating", server.rss_mb(), "MB", bar=Bar(150))


def main() -> int:
    refuse_debug_build()
    report = Report("api")
    build = REPOSITORY / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as scratch:
        data = Path(scratch)
        add_single_file_image(data, "web")
        with Server(data):
            token = (data / "token").read_text().strip()
        sample = asyncio.run(fill(data, report))
        starts, start_cpus = [], []
        for _ in range(STARTS):
            with Server(data) as server:
                starts.append(server.start_s)
                start_cpus.append(server.start_cpu_s)
        report.samples("start-up to the first page", starts, "s", bar=Bar(1.0))
        report.samples("start-up: processor time", start_cpus, "s")
        with Server(data) as server:
            asyncio.run(requests(report, server, token, sample))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

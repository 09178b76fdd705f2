"""`make bench-snapshot`: waking, sleeping and sizes of VMs of one template, HTTP servers.

`NAME` is one instance that sleeps after each request, its state growing; `NAME-new` are new
instances of the template, which have their first request.
"""

import argparse
import asyncio
import dataclasses
import os
import secrets
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.bench.clones_memory import CLONES, measure_memory
from tests.bench.floor import delta_bytes, free_port, plain_process
from tests.bench.native import enter_mount_namespace
from tests.rootfs.build import root_image
from tests.snapshot.peer import Stream
from tests.snapshot.vms import (
    Sibling,
    Template,
    make_template,
    memory_file,
    read_descriptor,
    vm_process,
)
from torpor.bench import Bar, Report, WrongAnswerError, refuse_debug_build
from torpor.controller.templates import SIBLINGS
from torpor.vmprocess import VMProcess

PYTHON = """
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
n, seen = 0, {}
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global n
        n += 1
        seen[n] = str(n) * 8
        body = b'{"count":%d}' % n
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
TCPServer(("0.0.0.0", PORT), Handler).serve_forever()
"""
BUN = """
let n = 0; const seen = new Map();
Bun.serve({ port: PORT, hostname: "0.0.0.0", fetch(request) {
  const { pathname } = new URL(request.url);
  n += 1; seen.set(n, String(n).repeat(8));
  return Response.json({ count: n });
} });
"""
NODE = """
let n = 0; const seen = new Map();
require("http").createServer((request, response) => {
  n += 1; seen.set(n, String(n).repeat(8));
  response.end(`{"count":${n}}`);
}).listen(PORT, "0.0.0.0");
"""
PROGRAMS = {
    "cpython": ("python", ["python3", "-c"], PYTHON),
    "bun": ("bun", ["bun", "-e"], BUN),
    "node": ("node", ["node", "-e"], NODE),
}
PORT = 8080


def command(name: str, port: int) -> list[str]:
    _, argv, source = PROGRAMS[name]
    return [*argv, source.replace("PORT", str(port))]


@dataclass
class Times:
    """Milliseconds of each step; `cpu` is what the VM process took for all of them."""

    restore: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    standby: list[float] = field(default_factory=list)
    reset: list[float] = field(default_factory=list)
    cpu: dict[str, list[float]] = field(
        default_factory=lambda: {"answer": [], "standby": [], "reset": []}
    )


class Clock:
    """Wall and processor time of a VM process since the last look."""

    def __init__(self, process: VMProcess) -> None:
        self._tasks = Path(f"/proc/{process.pid}/task")
        self._cpu_ns = self._used_ns()
        self._began = time.perf_counter()

    def _used_ns(self) -> int:
        return sum(int((t / "schedstat").read_text().split()[0]) for t in self._tasks.iterdir())

    def lap(self, wall: list[float], cpu: list[float]) -> None:
        """Note the milliseconds of both; what noting takes counts for nothing."""
        wall.append((time.perf_counter() - self._began) * 1e3)
        used_ns = self._used_ns()
        cpu.append((used_ns - self._cpu_ns) / 1e6)
        self._cpu_ns = used_ns
        self._began = time.perf_counter()


def _is_answered(before: int, wanted: bytes, stream: Stream) -> bool:
    return wanted in stream.received[before:] or stream.closed is not None


async def requests(vm: Sibling, already: int, count: int) -> None:
    """So many requests on a connection of their own."""
    stream = await vm.peer.connect(PORT)
    for number in range(already + 1, already + count + 1):
        before = len(stream.received)
        wanted = b'{"count":%d}' % number
        stream.write(b"GET / HTTP/1.1\r\nHost: counter\r\n\r\n")
        await stream.until(partial(_is_answered, before, wanted))
        if wanted not in stream.received[before:]:
            raise WrongAnswerError(f"{bytes(stream.received[before:])!r} instead of {wanted!r}")
    stream.close()


async def turn(
    vm: Sibling, times: Times, uuid: str, generation: int, delta: bytes | None, already: int
) -> bytes:
    """Wake, one request, standby, reset."""
    clock = Clock(vm.process)
    times.restore.append(await vm.wake(uuid, generation, delta) * 1e3)
    await requests(vm, already, 1)
    clock.lap(times.answer, times.cpu["answer"])
    stored = await vm.process.standby(generation + 1, within_s=60)
    clock.lap(times.standby, times.cpu["standby"])
    new = read_descriptor(stored.descriptor)
    clock = Clock(vm.process)
    if not await vm.process.reset():
        raise WrongAnswerError("the process was retired")
    clock.lap(times.reset, times.cpu["reset"])
    return new


async def warm_base_of(process: VMProcess, vm: Sibling) -> bytes:
    """A warm base of siblings after one request each."""
    deltas = [await turn(vm, Times(), secrets.token_hex(16), 0, None, 0) for _ in range(SIBLINGS)]
    files = [memory_file(delta) for delta in deltas]
    template = vm.template
    learnt = await process.learn(
        template.digest, template=template.file, memory=template.memory, deltas=files
    )
    for file in files:
        os.close(file)
    return read_descriptor(learnt)


async def sizes(vm: Sibling) -> dict[int, int]:
    """Bytes of a delta after so many requests."""
    found = {}
    for count in (1, 100, 1000):
        await vm.wake(secrets.token_hex(16), 0)
        await requests(vm, 0, count)
        found[count] = len(await vm.sleep(1))
    return found


def measure_floor(name: str, report: Report, turns: int) -> None:
    """The same program as a plain process."""
    port = free_port()
    with plain_process(PROGRAMS[name][0], command(name, port), port) as process:
        ready = process.pages()
        already = 0
        for count in (1, 100, 1000):
            process.ask(count - already)
            already = count
            size = delta_bytes(ready, process.pages())
            report.value(f"{name}-plain-process-after-{count}", size / 1000, "KB")
        times = [process.continued() * 1e3 for _ in range(turns)]
        report.samples(f"{name}-plain-process-continued-to-answer", times, "ms")


async def measure(name: str, report: Report, turns: int, directory: Path) -> None:
    image = root_image(PROGRAMS[name][0])
    template = await make_template(directory, image, command(name, PORT))
    report.value(f"{name}-template", len(template.data) / 1000, "KB")
    async with vm_process(directory) as process:
        vm = await Sibling.prepare(process, template)
        for count, size in (await sizes(vm)).items():
            report.value(f"{name}-delta-after-{count}", size / 1000, "KB")
        warm = await warm_base_of(process, vm)
    report.value(f"{name}-warm-base", len(warm) / 1000, "KB")
    async with vm_process(directory) as process:
        vm = await Sibling.prepare(process, template, warm=warm)
        for count, size in (await sizes(vm)).items():
            report.value(f"{name}-delta-after-{count}-on-warm-base", size / 1000, "KB")
        times, uuid, delta = Times(), secrets.token_hex(16), None
        for generation in range(turns):
            delta = await turn(vm, times, uuid, generation, delta, generation)
        report_times(name, report, times, in_bars=True)
        starts = Times()
        for _ in range(turns):
            await turn(vm, starts, secrets.token_hex(16), 0, None, 0)
        report_times(f"{name}-new", report, starts, in_bars=False)
    await measure_fresh(name, report, turns, directory, template, warm)
    await measure_first(name, report, turns, directory, template)
    template.close()


async def measure_fresh(
    name: str, report: Report, turns: int, directory: Path, template: Template, warm: bytes
) -> None:
    """A new instance in a process that has not served any, made ready in either way."""
    for touch in (False, True):
        prepare, answer, memory_bytes = list[float](), list[float](), 0
        for _ in range(min(turns, 30)):
            async with vm_process(directory) as process:
                began = time.perf_counter()
                vm = await Sibling.prepare(process, template, warm=warm, touch=touch)
                prepare.append((time.perf_counter() - began) * 1e3)
                memory_bytes = (await process.query()).memory_bytes
                began = time.perf_counter()
                await vm.wake(secrets.token_hex(16), 0)
                await requests(vm, 0, 1)
                answer.append((time.perf_counter() - began) * 1e3)
                vm.peer.close()
        case = f"{name}-fresh-{'touched' if touch else 'untouched'}"
        report.samples(f"{case}-prepare", prepare, "ms")
        bar = Bar(8.0) if name == "bun" and touch else None
        report.samples(f"{case}-restore-to-answer", answer, "ms", bar=bar)
        report.value(f"{case}-memory", memory_bytes / 1e6, "MB")


async def measure_first(
    name: str, report: Report, turns: int, directory: Path, template: Template
) -> None:
    """A wake from a template that is not in memory: from no process to the answer."""
    report.value(f"{name}-first-wake-template", len(template.data) / 1000, "KB")
    for late in (False, True):
        answers, memory_bytes = await first_wakes(min(turns, 30), directory, template, late=late)
        case = f"{name}-first-wake-{'late' if late else 'unpacked'}"
        report.samples(case, answers, "ms")
        report.value(f"{case}-memory", memory_bytes / 1e6, "MB")


async def measure_first_of_large(report: Report, turns: int, directory: Path) -> None:
    """The same of a program that has 64 MiB when it is ready, which no request touches."""
    *argv, source = command("cpython", PORT)
    source = f"import os; much = os.urandom({LARGE_BYTES})\n{source}"
    template = await make_template(directory, root_image("python"), [*argv, source])
    await measure_first("cpython-64-mib", report, turns, directory, template)
    template.close()


async def first_wakes(
    turns: int, directory: Path, template: Template, *, late: bool
) -> tuple[list[float], int]:
    """Milliseconds of each, and the memory of the last process."""
    answers, memory_bytes = list[float](), 0
    for _ in range(turns):
        began = time.perf_counter()
        unpacked = template
        async with vm_process(directory) as process:
            if not late:
                descriptor = os.memfd_create("template", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                unpacked = dataclasses.replace(template, memory=descriptor)
                await process.unpack(template.digest, template=template.file, memory=descriptor)
            vm = await Sibling.prepare(process, unpacked, late=late)
            await vm.wake(secrets.token_hex(16), 0)
            await requests(vm, 0, 1)
            answers.append((time.perf_counter() - began) * 1e3)
            memory_bytes = (await process.query()).memory_bytes
            if not late:
                os.close(unpacked.memory)
            vm.peer.close()
    return answers, memory_bytes


LARGE_BYTES = 64 << 20
LARGE = """
import os, sys
os.makedirs("/run/torpor", exist_ok=True)
open("/run/torpor/ready", "w").close()
n, more = 0, []
for line in sys.stdin:
    n += 1
    if n == 1:
        more.append(os.urandom(BYTES))
    print(n, flush=True)
"""


async def measure_large(report: Report, turns: int, directory: Path) -> None:
    """A program that keeps 64 MiB which no request touches: each wake in a new process.

    As torpord does, the file of the state is handed on as it is.
    """
    argv = ["python3", "-u", "-c", LARGE.replace("BYTES", str(LARGE_BYTES))]
    template = await make_template(directory, root_image("python"), argv)
    uuid, delta = secrets.token_hex(16), None
    restore, answer, standby = list[float](), list[float](), list[float]()
    for generation in range(min(turns, 30)):
        async with vm_process(directory) as process:
            vm = await Sibling.prepare(process, template)
            began = time.perf_counter()
            restore.append(await vm.wake(uuid, generation, delta) * 1e3)
            if int(await vm.peer.ask("")) != generation + 1:
                raise WrongAnswerError("another generation's answer")
            answer.append((time.perf_counter() - began) * 1e3)
            began = time.perf_counter()
            stored = await vm.process.standby(generation + 1, within_s=60)
            standby.append((time.perf_counter() - began) * 1e3)
            if delta is not None:
                os.close(delta)
            delta = stored.descriptor
            vm.peer.close()
    # The first two learn what is needed.
    report.samples("64-mib-restore", restore[2:], "ms")
    report.samples("64-mib-restore-to-answer", answer[2:], "ms")
    report.samples("64-mib-standby", standby[2:], "ms")
    template.close()


def report_times(name: str, report: Report, times: Times, *, in_bars: bool) -> None:
    """All but the first two, in which nothing was warm."""

    def samples(case: str, values: list[float], limit: float | None = None) -> None:
        bar = None if limit is None or not in_bars else Bar(limit)
        report.samples(f"{name}-{case}", values[2:], "ms", bar=bar)

    samples("restore-in-place", times.restore, 0.15)
    samples("restore-to-answer", times.answer, 1.0)
    samples("standby", times.standby, 2.0)
    samples("reset", times.reset, 0.1)
    for step, values in times.cpu.items():
        samples(f"{step}-cpu", values)
    samples("cpu", [sum(steps) for steps in zip(*times.cpu.values(), strict=True)])


def main() -> int:
    enter_mount_namespace("tests.bench.snapshot")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs="*", default=list(PROGRAMS))
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--clones", type=int, default=CLONES)
    arguments = parser.parse_args()
    refuse_debug_build()
    report = Report("snapshot")
    with tempfile.TemporaryDirectory() as directory:
        for name in arguments.programs:
            measure_floor(name, report, arguments.turns)
            asyncio.run(measure(name, report, arguments.turns, Path(directory)))
        asyncio.run(measure_first_of_large(report, arguments.turns, Path(directory)))
        asyncio.run(measure_large(report, arguments.turns, Path(directory)))
        asyncio.run(measure_memory(report, Path(directory), arguments.clones))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

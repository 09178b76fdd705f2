"""`make bench-snapshot`: waking, sleeping and sizes of VMs of one template, by console."""

import argparse
import asyncio
import hashlib
import os
import secrets
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.floor import delta_bytes, plain_process
from tests.bench.native import enter_mount_namespace
from tests.rootfs.build import root_image
from tests.snapshot.vms import (
    Sibling,
    Template,
    make_template,
    memory_file,
    read_descriptor,
    vm_process,
)
from torpor.bench import Bar, Report, WrongAnswerError, refuse_debug_build
from torpor.vmprocess import Prepare, VMProcess

PYTHON = """
import os
n, seen = 0, {}
os.makedirs("/run/torpor", exist_ok=True)
open("/run/torpor/ready", "w").close()
while data := os.read(0, 65536):
    for _ in range(data.count(b"\\n")):
        n += 1
        seen[n] = str(n) * 8
    os.write(1, b"%d\\n" % n)
"""
JAVASCRIPT = """
const fs = require("fs");
let n = 0; const seen = new Map();
fs.mkdirSync("/run/torpor", { recursive: true });
process.stdin.on("data", (data) => {
  for (const c of data) if (c === 10) { n += 1; seen.set(n, String(n).repeat(8)); }
  fs.writeSync(1, n + "\\n");
});
setTimeout(() => fs.writeFileSync("/run/torpor/ready", ""), 100);
"""
PROGRAMS = {
    "cpython": ("python", ["python3", "-c", PYTHON]),
    "bun": ("bun", ["bun", "-e", JAVASCRIPT]),
    "node": ("node", ["node", "-e", JAVASCRIPT]),
}


@dataclass
class Times:
    """Milliseconds of each step."""

    restore: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    standby: list[float] = field(default_factory=list)
    reset: list[float] = field(default_factory=list)


async def requests(vm: Sibling, already: int, count: int) -> None:
    for number in range(already + 1, already + count + 1):
        if (answer := await vm.peer.ask("")) != str(number):
            raise WrongAnswerError(f"{answer!r} instead of {number}")


async def turn(
    vm: Sibling, times: Times, uuid: str, generation: int, delta: bytes | None, already: int
) -> bytes:
    """Wake, one request, standby, reset."""
    began = time.perf_counter()
    took = await vm.wake(uuid, generation, delta)
    await requests(vm, already, 1)
    times.restore.append(took * 1e3)
    times.answer.append((time.perf_counter() - began) * 1e3)
    began = time.perf_counter()
    stored = await vm.process.standby(generation + 1, within_s=60)
    times.standby.append((time.perf_counter() - began) * 1e3)
    new = read_descriptor(stored.descriptor)
    began = time.perf_counter()
    if not await vm.process.reset():
        raise WrongAnswerError("the process was retired")
    times.reset.append((time.perf_counter() - began) * 1e3)
    return new


async def warm_base_of(process: VMProcess, vm: Sibling) -> bytes:
    """A warm base of five siblings after one request each."""
    deltas = [await turn(vm, Times(), secrets.token_hex(16), 0, None, 0) for _ in range(5)]
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
    with plain_process(*PROGRAMS[name]) as process:
        ready = process.pages()
        already = 0
        for count in (1, 100, 1000):
            while already < count:
                process.ask()
                already += 1
            size = delta_bytes(ready, process.pages())
            report.value(f"{name}-plain-process-after-{count}", size / 1000, "KB")
        times = [process.continued() * 1e3 for _ in range(turns)]
        report.samples(f"{name}-plain-process-continued-to-answer", times, "ms")


async def measure(name: str, report: Report, turns: int, directory: Path) -> None:
    root, argv = PROGRAMS[name]
    template = await make_template(directory, root_image(root), argv)
    report.value(f"{name}-template", len(template.data) / 1000, "KB")
    async with vm_process(directory) as process:
        vm = await Sibling.prepare(process, template)
        for count, size in (await sizes(vm)).items():
            report.value(f"{name}-delta-after-{count}", size / 1000, "KB")
        warm = await warm_base_of(process, vm)
    report.value(f"{name}-warm-base", len(warm) / 1000, "KB")
    async with vm_process(directory) as process:
        vm = await prepare_warm(process, template, warm)
        for count, size in (await sizes(vm)).items():
            report.value(f"{name}-delta-after-{count}-on-warm-base", size / 1000, "KB")
        times, uuid, delta = Times(), secrets.token_hex(16), None
        for generation in range(turns):
            delta = await turn(vm, times, uuid, generation, delta, generation)
        report.samples(f"{name}-restore-in-place", times.restore[2:], "ms", bar=Bar(0.15))
        report.samples(f"{name}-restore-to-answer", times.answer[2:], "ms", bar=Bar(1.0))
        report.samples(f"{name}-standby", times.standby[2:], "ms", bar=Bar(2.0))
        report.samples(f"{name}-reset", times.reset[2:], "ms", bar=Bar(0.1))
    template.close()


async def prepare_warm(process: VMProcess, template: Template, warm: bytes) -> Sibling:
    file = memory_file(warm)
    prepare = Prepare(template=template.digest, warm_base=hashlib.sha256(warm).hexdigest())
    await process.prepare(
        prepare,
        template=template.file,
        memory=template.memory,
        image=template.image,
        warm_base=file,
    )
    os.close(file)
    return Sibling(process, template)


def main() -> int:
    enter_mount_namespace("tests.bench.snapshot")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs="*", default=list(PROGRAMS))
    parser.add_argument("--turns", type=int, default=100)
    arguments = parser.parse_args()
    refuse_debug_build()
    report = Report("snapshot")
    with tempfile.TemporaryDirectory() as directory:
        for name in arguments.programs:
            measure_floor(name, report, arguments.turns)
            asyncio.run(measure(name, report, arguments.turns, Path(directory)))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

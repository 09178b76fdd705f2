"""What running clones of one template cost the host in memory."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.rootfs.build import root_image
from tests.snapshot.vms import Sibling, make_template, vm_process
from torpor.bench import Report

CLONES = 500
CLONES_OF_LARGE_IMAGE = 100
LARGE_IMAGE_BYTES = 1 << 30
PROGRAM = """
import os, sys
os.makedirs("/run/torpor", exist_ok=True)
open("/run/torpor/ready", "w").close()
for n, _ in enumerate(sys.stdin):
    print(n, flush=True)
"""


@contextlib.contextmanager
def enlarged(image: Path, directory: Path) -> Iterator[Path]:
    """The same image with nothing behind it, up to a gigabyte."""
    large = directory / "large.erofs"
    shutil.copyfile(image, large)
    os.truncate(large, LARGE_IMAGE_BYTES)
    yield large
    large.unlink()


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise LookupError("MemAvailable")


def private_dirty_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise LookupError("Private_Dirty")


async def of_clones(image: Path, directory: Path, count: int) -> tuple[float, float]:
    """KB of each clone that has answered once: Private_Dirty, and what is available less."""
    template = await make_template(directory, image, ["python3", "-u", "-c", PROGRAM])
    async with contextlib.AsyncExitStack() as stack:
        vms = []
        # The first shows what they have in common.
        for _ in range(count + 1):
            process = await stack.enter_async_context(vm_process(directory))
            vm = await Sibling.prepare(process, template)
            await vm.wake(secrets.token_hex(16), 0)
            assert await vm.peer.ask("") == "0"
            vms.append(vm)
            if len(vms) == 1:
                before = available_bytes()
        taken = (before - available_bytes()) / count
        dirty = sum(private_dirty_bytes(vm.process.pid) for vm in vms[1:]) / count
        for vm in vms:
            vm.peer.close()
    template.close()
    return dirty / 1000, taken / 1000


async def measure_memory(report: Report, directory: Path, clones: int) -> None:
    """Of a CPython program, and of the same with an image of a gigabyte."""
    image = root_image("python")
    dirty, taken = await of_clones(image, directory, clones)
    report.value(f"clone-private-dirty-of-{clones}", dirty, "KB")
    report.value(f"clone-memory-of-{clones}", taken, "KB")
    few = min(clones, CLONES_OF_LARGE_IMAGE)
    _, small = await of_clones(image, directory, few)
    with enlarged(image, directory) as large:
        _, with_large = await of_clones(large, directory, few)
    megabytes = (LARGE_IMAGE_BYTES - image.stat().st_size) / 1e6
    report.value(f"clone-memory-of-{few}", small, "KB")
    report.value(f"clone-memory-of-{few}-image-1-gib", with_large, "KB")
    report.value("slot-per-gb-of-image", (with_large - small) / megabytes * 1000, "KB")

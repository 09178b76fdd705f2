"""Runs in the emulated machine: snapshots of a small program and of CPython.

One argument, the check's name; prints `ok`.
"""

import asyncio
import json
import os
import random
import secrets
import sys
import time
from pathlib import Path

from tests.snapshot.vms import (
    Sibling,
    Template,
    make_template,
    occurrences,
    read_descriptor,
    vm_process,
)
from torpor.vmprocess import Refused

DIRECTORY = Path("/tmp")
OBEY = (Path(__file__).parents[1] / "snapshot/programs/obey.py").read_text()


async def swap(template: Template) -> None:
    """Instances that have mapped and forked differently take turns, then begin in a new VM."""
    chance = random.Random(1)
    deltas: dict[str, tuple[int, bytes | None, int]] = {}
    uuids = [secrets.token_hex(16) for _ in range(3)]
    turn = 0
    while turn < 7:
        async with vm_process(DIRECTORY) as process:
            vm = await Sibling.prepare(process, template)
            is_usable = True
            while turn < 7 and is_usable:
                uuid = uuids[turn % 3]
                turn += 1
                generation, delta, areas = deltas.get(uuid, (0, None, 0))
                await vm.wake(uuid, generation, delta)
                await check(vm, areas)
                areas = int(await vm.peer.ask(f"churn {chance.randrange(1 << 30)}"))
                stored = await process.standby(generation + 1, within_s=60)
                deltas[uuid] = (generation + 1, read_descriptor(stored.descriptor), areas)
                # Not where the state has become large.
                is_usable = await process.reset()
    for uuid, (generation, delta, areas) in deltas.items():
        async with vm_process(DIRECTORY) as process:
            vm = await Sibling.prepare(process, template, never_run=True)
            await vm.wake(uuid, generation, delta)
            await check(vm, areas)


async def check(vm: Sibling, areas: int) -> None:
    answer = json.loads(await vm.peer.ask("check"))
    assert answer["wrong"] == [], answer
    assert answer["areas"] == areas, answer


async def late(template: Template) -> None:
    """The pages of a large state arrive when they are touched, also where the vCPU never ran."""
    uuid, noise_bytes = secrets.token_hex(16), 24 << 20
    async with vm_process(DIRECTORY) as process:
        vm = await Sibling.prepare(process, template)
        await vm.wake(uuid, 0)
        digest = await vm.peer.ask(f"noise {noise_bytes}")
        stored = await process.standby(1, within_s=60)
        delta = read_descriptor(stored.descriptor)
    for generation in (1, 2):
        async with vm_process(DIRECTORY) as process:
            vm = await Sibling.prepare(process, template, never_run=generation == 1)
            await vm.wake(uuid, generation, delta)
            assert await vm.peer.ask("count") == str(generation)
            assert (await process.query()).memory_bytes < noise_bytes
            stored = await process.standby(generation + 1, within_s=60)
            delta = read_descriptor(stored.descriptor)
            await process.run()
            assert await vm.peer.ask("noise") == digest
    async with vm_process(DIRECTORY) as process:
        vm = await Sibling.prepare(process, template)
        await vm.wake(uuid, 3, delta)
        await check(vm, 0)
        assert await vm.peer.ask("noise") == digest


async def late_template(template: Template) -> None:
    """A template that is not unpacked: its state goes on in others, and the other way round."""
    uuid, delta, areas = secrets.token_hex(16), None, 0
    for generation, late in enumerate((True, False)):
        async with vm_process(DIRECTORY) as process:
            vm = await Sibling.prepare(process, template, late=late)
            await vm.wake(uuid, generation, delta)
            await check(vm, areas)
            areas = int(await vm.peer.ask(f"churn {generation}"))
            stored = await process.standby(generation + 1, within_s=60)
            delta = read_descriptor(stored.descriptor)


async def clocks(template: Template) -> None:
    """CLOCK_MONOTONIC stands still in standby, the others go on."""
    async with vm_process(DIRECTORY) as process:
        vm = await Sibling.prepare(process, template)
        uuid = secrets.token_hex(16)
        await vm.wake(uuid, 0)
        before = json.loads(await vm.peer.ask("clocks"))
        began = time.time()
        delta = await vm.sleep(1)
        await asyncio.sleep(3)
        slept = time.time() - began
        await vm.wake(uuid, 1, delta)
        after = json.loads(await vm.peer.ask("clocks"))
        assert after[1] - before[1] >= 3
        assert after[0] - before[0] <= after[1] - before[1] - 2.5, (before, after, slept)
        assert abs(after[1] - time.time()) < 10


async def reset(template: Template) -> None:
    """A secret is gone from guest-physical memory, registers, page tables and the process."""
    first, second = "b" + secrets.token_hex(4)[1:], "d" + secrets.token_hex(4)[1:]
    async with vm_process(DIRECTORY) as process:
        vm = await Sibling.prepare(process, template)
        await vm.wake(secrets.token_hex(16), 0)
        assert await vm.peer.ask(f"plant {first} {second}") == "0"
        assert int(await vm.peer.ask(f"hide {first} {second}")) > 0
        await vm.sleep(1, busy=True)
        assert occurrences(process.pid, (first + second).encode()) == 0
        await vm.wake(secrets.token_hex(16), 0)
        assert await vm.peer.ask(f"scan {first} {second} {4 * 32 << 20}") == "0"


async def corruption(template: Template) -> None:
    """What is damaged is refused, and the VM rests as before."""
    async with vm_process(DIRECTORY) as process:
        vm = await Sibling.prepare(process, template)
        uuid = secrets.token_hex(16)
        await vm.wake(uuid, 0)
        assert await vm.peer.ask("count") == "1"
        delta = await vm.sleep(1)
        step = max(1, len(delta) // 100)
        for at in range(0, len(delta), step):
            changed = bytearray(delta)
            changed[at] ^= 1
            for bad in (bytes(changed), delta[:at]):
                assert await refusal(vm, uuid, bad) == "bad_snapshot", at
        await vm.wake(uuid, 1, delta)
        assert await vm.peer.ask("count") == "2"


async def refusal(vm: Sibling, uuid: str, delta: bytes) -> str | None:
    try:
        await vm.wake(uuid, 1, delta)
    except Refused as refused:
        return refused.code
    return None


async def main(name: str) -> None:
    if name in ("swap", "late", "late_template", "clocks"):
        image, argv, memory_mib = "/python.erofs", ["python3", "-u", "-c", OBEY], 128
    else:
        image, argv, memory_mib = "/programs.erofs", ["secrets"], 32
    template = await make_template(DIRECTORY, Path(image), argv, memory_mib=memory_mib)
    checks = {
        "swap": swap,
        "late": late,
        "late_template": late_template,
        "clocks": clocks,
        "reset": reset,
        "corruption": corruption,
    }
    await checks[name](template)
    print("ok")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

"""Large states, whose pages arrive when they are touched."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness import REPOSITORY
from tests.snapshot.test_snapshots import ask, check
from tests.snapshot.vms import (
    Sibling,
    Template,
    memory_file,
    read_descriptor,
    vm_process,
)
from torpor.vmprocess import Ended

pytestmark = pytest.mark.kvm

NOISE_BYTES = 24 << 20


def late_chunks(directory: Path, delta: bytes) -> int:
    """How many chunks of a delta need not be there before its VM runs."""
    file = directory / "inspected"
    file.write_bytes(delta)
    command = [str(REPOSITORY / ".venv/bin/torpor-vmm"), "inspect", str(file)]
    done = subprocess.run(command, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return int(found["late_chunks"])


async def standby(vm: Sibling, generation: int) -> bytes:
    return read_descriptor((await vm.process.standby(generation, within_s=60)).descriptor)


async def large(directory: Path, template: Template, uuid: str) -> tuple[bytes, object]:
    """The first generation of an instance with much in memory, and the digest of that."""
    async with vm_process(directory) as process:
        vm = await Sibling.prepare(process, template)
        await vm.wake(uuid, 0)
        digest = await ask(vm, f"noise {NOISE_BYTES}")
        delta = await standby(vm, 1)
        vm.peer.close()
    return delta, digest


def test_what_is_not_touched_stays_where_it_is(directory: Path, template: Template) -> None:
    """Through standbys and wakes in other processes, and then it is there, byte for byte."""

    async def test() -> None:
        uuid = secrets.token_hex(16)
        delta, digest = await large(directory, template, uuid)
        first = late_chunks(directory, delta)
        assert first > NOISE_BYTES / (128 << 10) / 2
        for generation in range(1, 4):
            async with vm_process(directory) as process:
                vm = await Sibling.prepare(process, template, never_run=generation % 2 == 0)
                await vm.wake(uuid, generation, delta)
                assert await ask(vm, "count") == generation
                assert (await process.query()).memory_bytes < NOISE_BYTES
                delta = await standby(vm, generation + 1)
                # What was needed the last time is there at once the next time.
                assert 0 < late_chunks(directory, delta) < first
                vm.peer.close()
        async with vm_process(directory) as process:
            vm = await Sibling.prepare(process, template)
            await vm.wake(uuid, 4, delta)
            assert await ask(vm, "noise") == digest
            assert (await check(vm))["count"] == 3
            delta = await standby(vm, 5)
            assert late_chunks(directory, delta) < first / 4
            vm.peer.close()

    asyncio.run(test())


async def learnt(directory: Path, template: Template) -> bytes:
    """A warm base of three siblings."""
    async with vm_process(directory) as process:
        vm = await Sibling.prepare(process, template)
        files = []
        for _ in range(3):
            await vm.wake(secrets.token_hex(16), 0)
            await ask(vm, "count")
            files.append(memory_file(await vm.sleep(1)))
        warm = await process.learn(
            template.digest, template=template.file, memory=template.memory, deltas=files
        )
        for file in files:
            os.close(file)
        vm.peer.close()
    return read_descriptor(warm)


@pytest.mark.parametrize("rests_at_warm_base", [False, True])
def test_all_ways_of_restoring_give_the_same(
    directory: Path, template: Template, rests_at_warm_base: bool
) -> None:
    """Property test: state and template late or at once, in one that was used or a new one."""

    async def test() -> None:
        seed = int(os.environ.get("TORPOR_TEST_SEED", "") or secrets.randbelow(1 << 30))
        print(f"TORPOR_TEST_SEED={seed}")  # shown when the test fails
        chance = random.Random(seed)
        warm = await learnt(directory, template)
        uuids = [secrets.token_hex(16) for _ in range(3)]
        states: dict[str, tuple[int, bytes | None, int, object]] = dict.fromkeys(
            uuids, (0, None, 0, None)
        )
        turns = 12
        while turns > 0:
            async with vm_process(directory) as process:
                late = chance.random() < 0.5
                own = warm if rests_at_warm_base else None
                vm = await Sibling.prepare(process, template, late=late, warm=own)
                is_usable = True
                while turns > 0 and is_usable:
                    turns -= 1
                    uuid = chance.choice(uuids)
                    generation, delta, areas, digest = states[uuid]
                    await vm.wake(uuid, generation, delta)
                    if digest is None and uuid != uuids[0]:
                        digest = await ask(vm, f"noise {NOISE_BYTES}")
                    if chance.randrange(3) == 0:
                        assert (await check(vm))["areas"] == areas
                    if chance.randrange(2):
                        areas = int(str(await ask(vm, f"churn {chance.randrange(1 << 30)}")))
                    if digest is not None and chance.randrange(4) == 0:
                        assert await ask(vm, "noise") == digest
                    if chance.randrange(3) == 0:
                        stored = await process.checkpoint(generation + 1, within_s=60)
                        os.close(stored.descriptor)
                    states[uuid] = (
                        generation + 1,
                        await standby(vm, generation + 1),
                        areas,
                        digest,
                    )
                    is_usable = await process.reset()
                vm.peer.close()
        for uuid, (generation, delta, areas, digest) in states.items():
            ways = itertools.product((False, True), (False, True), (None, warm))
            for late, never_run, own in ways:
                if rests_at_warm_base and own is None:
                    continue  # what was stored there is coded against it
                async with vm_process(directory) as process:
                    other = await Sibling.prepare(
                        process, template, never_run=never_run, late=late, warm=own
                    )
                    await other.wake(uuid, generation, delta)
                    if digest is not None:
                        assert await ask(other, "noise") == digest
                    assert (await check(other))["areas"] == areas
                    other.peer.close()

    asyncio.run(test())


def test_a_wrong_byte_that_is_found_late_ends_the_vm(directory: Path, template: Template) -> None:
    async def test() -> None:
        uuid = secrets.token_hex(16)
        delta, _ = await large(directory, template, uuid)
        bad = bytearray(delta)
        bad[-NOISE_BYTES // 2] ^= 1
        async with vm_process(directory) as process:
            vm = await Sibling.prepare(process, template)
            await vm.wake(uuid, 1, bytes(bad))
            assert await ask(vm, "count") == 1
            with contextlib.suppress(EOFError, ConnectionError, TimeoutError):
                print(await asyncio.wait_for(ask(vm, "noise"), 20))
            event = await asyncio.wait_for(process.events.get(), 60)
            assert isinstance(event, Ended)
            assert event.reason == "damaged"
            assert "the checksum of chunk" in event.message
            vm.peer.close()
        async with vm_process(directory) as process:
            vm = await Sibling.prepare(process, template)
            await vm.wake(uuid, 1, delta)
            assert await ask(vm, "count") == 1
            vm.peer.close()

    asyncio.run(test())


def test_pages_arrive_while_there_is_no_controller(directory: Path, template: Template) -> None:
    async def test() -> None:
        uuid = secrets.token_hex(16)
        delta, digest = await large(directory, template, uuid)
        async with vm_process(directory) as process:
            vm = await Sibling.prepare(process, template)
            await vm.wake(uuid, 1, delta)
            process.close()
            assert await ask(vm, "noise") == digest
            vm.peer.close()

    asyncio.run(test())


def test_a_process_that_had_a_large_state_is_not_used_again(
    directory: Path, template: Template
) -> None:
    """Also where little of it has arrived."""

    async def test() -> None:
        uuid = secrets.token_hex(16)
        delta, _ = await large(directory, template, uuid)
        async with vm_process(directory) as process:
            vm = await Sibling.prepare(process, template)
            await vm.wake(uuid, 1, delta)
            assert await ask(vm, "count") == 1
            await standby(vm, 2)
            assert not await process.reset()
            vm.peer.close()

    asyncio.run(test())

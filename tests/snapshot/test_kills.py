"""SIGKILL of a VM process at any moment of a command: the state before stays good."""

import asyncio
import contextlib
import os
import random
import secrets
from pathlib import Path

import pytest

from tests.snapshot.test_snapshots import ask, check
from tests.snapshot.vms import Sibling, Template, read_descriptor
from torpor.vmprocess import Refused, launch

pytestmark = pytest.mark.kvm


async def run(command: str, vm: Sibling, uuid: str, delta: bytes) -> bytes:
    """Carry out a command, with those that it needs before; returns the state that was stored."""
    if command == "checkpoint":
        stored = await vm.process.checkpoint(2, within_s=60, busy=True)
    else:
        stored = await vm.process.standby(2, within_s=60)
    state = read_descriptor(stored.descriptor)
    if command in ("reset", "restore"):
        await vm.process.reset()
    if command == "restore":
        await vm.wake(uuid, 1, delta)
    return state


@pytest.mark.parametrize("command", ["standby", "checkpoint", "reset", "restore"])
def test_killed_in_a_command(directory: Path, template: Template, command: str) -> None:
    """Whatever was in hand before goes on elsewhere; what came out of a killed process is whole."""
    rounds = 6

    async def one(within_s: float) -> None:
        uuid = secrets.token_hex(16)
        launched = await launch(directory / f"{secrets.token_hex(4)}.sock")
        try:
            vm = await Sibling.prepare(launched.process, template)
            await vm.wake(uuid, 0)
            await ask(vm, "count")
            delta = await vm.sleep(1)
            await vm.wake(uuid, 1, delta)
            assert await ask(vm, "count") == 2
            running = asyncio.ensure_future(run(command, vm, uuid, delta))
            await asyncio.wait([running], timeout=within_s)
            launched.child.kill()
            await asyncio.to_thread(launched.child.wait, 60)
            newer: bytes | None = None
            with contextlib.suppress(ConnectionError):
                newer = await running
            vm.peer.close()
        finally:
            launched.process.close()
            launched.child.kill()
            launched.child.wait()
        launched = await launch(directory / f"{secrets.token_hex(4)}.sock")
        try:
            vm = await Sibling.prepare(launched.process, template)
            for generation, state in ((2, newer), (1, delta)):
                if state is not None:
                    await vm.wake(uuid, generation, state)
                    assert (await check(vm))["count"] == generation
                    await vm.sleep(generation + 1)
            with pytest.raises(Refused):
                await vm.wake(uuid, 1, delta[:-1])
            vm.peer.close()
        finally:
            launched.process.close()
            launched.child.kill()
            launched.child.wait()

    seed = int(os.environ.get("TORPOR_TEST_SEED", "") or secrets.randbelow(1 << 30))
    print(f"TORPOR_TEST_SEED={seed}")  # shown when the test fails
    chance = random.Random(seed)
    for _ in range(rounds):
        asyncio.run(one(chance.random() ** 2 * 0.02))

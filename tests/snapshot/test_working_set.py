"""What instances need soon is mapped in a new process before anybody needs it."""

import asyncio
import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness import REPOSITORY
from tests.snapshot.test_late import learnt
from tests.snapshot.test_snapshots import ask, check
from tests.snapshot.vms import Sibling, Template, vm_process
from torpor.vmprocess import Refused

pytestmark = pytest.mark.kvm

FEW_BYTES = 128 << 10
IMAGE_PAGE = 0x10_0000_0000 >> 12


def working_set(directory: Path, warm: bytes) -> dict[str, Any]:
    """What a warm base says of it."""
    file = directory / "warm"
    file.write_bytes(warm)
    command = [str(REPOSITORY / ".venv/bin/torpor-vmm"), "inspect", str(file)]
    done = subprocess.run(command, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(done.stdout)["metadata"]["working_set"]
    return found


def test_siblings_teach_what_they_touch(directory: Path, template: Template) -> None:
    """Of memory and of the image; a new process has it then, and is what others are."""

    async def test() -> None:
        warm = await learnt(directory, template)
        found = working_set(directory, warm)
        touched = {
            page for first, count in found["touched"] for page in range(first, first + count)
        }
        written = {
            page for first, count in found["written"] for page in range(first, first + count)
        }
        assert 50 < len(written) < len(touched) < 20_000
        assert written <= touched
        assert 50 < sum(page >= IMAGE_PAGE for page in touched) < len(touched) - 50
        own_bytes = []
        uuid, generation, delta = secrets.token_hex(16), 0, None
        for touch in (False, True, True):
            async with vm_process(directory) as process:
                vm = await Sibling.prepare(process, template, warm=warm, touch=touch)
                own_bytes.append((await process.query()).memory_bytes)
                # An instance that goes on, and clones before it and after it.
                for _ in range(2):
                    await vm.wake(secrets.token_hex(16), 0)
                    assert (await check(vm))["count"] == 0
                    await ask(vm, f"churn {generation}")
                    await vm.sleep(1)
                    await vm.wake(uuid, generation, delta)
                    generation += 1
                    assert await ask(vm, "count") == generation
                    await check(vm)
                    delta = await vm.sleep(generation)
                vm.peer.close()
        # The pages that are written, but for those that the warm base has written.
        assert min(own_bytes[1:]) > own_bytes[0]

    asyncio.run(test())


async def touched_bytes(vm: Sibling) -> int:
    """By how much touching makes a VM at rest larger."""
    before = (await vm.process.query()).memory_bytes
    await vm.process.touch()
    return (await vm.process.query()).memory_bytes - before


def test_others_touch_nothing(directory: Path, template: Template) -> None:
    """Those that never ran, have no warm base, were touched before, or were an instance."""

    async def test() -> None:
        warm = await learnt(directory, template)
        for never_run, base in ((True, warm), (False, None)):
            async with vm_process(directory) as process:
                vm = await Sibling.prepare(process, template, never_run=never_run, warm=base)
                assert await touched_bytes(vm) < FEW_BYTES
                await vm.wake(secrets.token_hex(16), 0)
                assert (await check(vm))["count"] == 0
                with pytest.raises(Refused, match="the VM runs") as refused:
                    await process.touch()
                assert refused.value.code == "wrong_state"
                vm.peer.close()
        async with vm_process(directory) as process:
            vm = await Sibling.prepare(process, template, warm=warm)
            assert await touched_bytes(vm) > FEW_BYTES
            assert await touched_bytes(vm) < FEW_BYTES
            vm.peer.close()
        async with vm_process(directory) as process:
            vm = await Sibling.prepare(process, template, warm=warm)
            await vm.wake(secrets.token_hex(16), 0)
            await vm.sleep(1)
            assert await touched_bytes(vm) < FEW_BYTES
            await vm.wake(secrets.token_hex(16), 0)
            assert (await check(vm))["count"] == 0
            vm.peer.close()

    asyncio.run(test())

"""VM processes of a template that was not unpacked: its pages arrive when they are touched."""

import asyncio
import dataclasses
import os
import secrets
from pathlib import Path

import pytest

from tests.snapshot.test_snapshots import ask, check
from tests.snapshot.vms import Sibling, Template, memory_file, occurrences, vm_process
from torpor.store import Content
from torpor.vmprocess import Ended, Refused

pytestmark = pytest.mark.kvm


def test_its_state_goes_on_in_others_and_the_other_way_round(
    directory: Path, template: Template
) -> None:
    """Each generation in a process of its own; what has arrived is that process's memory."""

    async def test() -> None:
        uuid, delta, used_bytes = secrets.token_hex(16), None, []
        for generation, late in enumerate((True, False, True, True)):
            async with vm_process(directory) as process:
                vm = await Sibling.prepare(process, template, late=late)
                await vm.wake(uuid, generation, delta)
                assert await ask(vm, "count") == generation + 1
                used_bytes.append((await process.query()).memory_bytes)
                delta = await vm.sleep(generation + 1)
                vm.peer.close()
        assert min(used_bytes) == used_bytes[1]

    asyncio.run(test())


def test_a_checkpoint_a_reset_and_others_after_it(directory: Path, template: Template) -> None:
    """As with a template that was unpacked, and nothing of an instance stays."""

    async def test() -> None:
        async with vm_process(directory) as process:
            vm = await Sibling.prepare(process, template, late=True)
            uuid, marker = secrets.token_hex(16), secrets.token_hex(8)
            await vm.wake(uuid, 0)
            await ask(vm, f"hold {marker}")
            await ask(vm, "dirty 1")
            os.close((await process.checkpoint(1, within_s=60)).descriptor)
            assert await ask(vm, "count") == 1
            assert occurrences(process.pid, marker.encode()) > 0
            delta = await vm.sleep(2)
            assert occurrences(process.pid, marker.encode()) == 0
            for generation in range(3):
                other = secrets.token_hex(16)
                await vm.wake(other, 0)
                assert (await check(vm))["count"] == 0
                assert int(str(await ask(vm, f"churn {generation}"))) >= 0
                await check(vm)
                await vm.sleep(1)
            await vm.wake(uuid, 2, delta)
            assert (await check(vm))["count"] == 1
            vm.peer.close()

    asyncio.run(test())


def test_a_wrong_byte_is_found_when_it_is_touched(directory: Path, template: Template) -> None:
    """Anywhere: it is refused, or ends the VM with the reason."""

    async def test() -> None:
        size = len(template.data)
        found = set()
        for at in [*range(0, 4000, 400), *range(4000, size, size // 25)]:
            found.add(await _met(directory, template, at))
        assert {"refused", "ended"} <= found

    asyncio.run(test())


def test_a_digest_stands_for_all_of_a_file(template: Template) -> None:
    """As torpord computes and checks it, too."""
    digest = Content(template.data).digest
    assert digest.hex() == template.digest
    assert Content(template.data, digest).is_whole()
    size = len(template.data)
    for at in [*range(0, 4000, 7), *range(4000, size, size // 100)]:
        changed = bytearray(template.data)
        changed[at] ^= 1 << at % 8
        assert not Content(bytes(changed), digest).is_whole(), at
    for cut in range(0, size, size // 50):
        assert not Content(template.data[:cut], digest).is_whole(), cut
    assert not Content(template.data + b"?", digest).is_whole()


async def _met(directory: Path, template: Template, at: int) -> str:
    """How a changed byte of the template's file shows."""
    changed = bytearray(template.data)
    changed[at] ^= 1 << at % 8
    bad = dataclasses.replace(template, file=memory_file(bytes(changed)))
    try:
        async with vm_process(directory) as process:
            try:
                vm = await Sibling.prepare(process, bad, late=True)
                try:
                    await vm.wake(secrets.token_hex(16), 0)
                    assert (await check(vm))["count"] == 0
                finally:
                    vm.peer.close()
            except Refused as refused:
                assert refused.code == "bad_snapshot"  # noqa: PT017 -- one of the ways
                return "refused"
            except (ConnectionError, EOFError):
                event = await asyncio.wait_for(process.events.get(), 60)
                assert isinstance(event, Ended)
                assert event.reason == "damaged"
                assert "the checksum of chunk" in event.message
                return "ended"
            return "never touched"
    finally:
        os.close(bad.file)

"""Templates, standby, restore and reset of real VMs, told what to do over their control sockets."""

import asyncio
import json
import os
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.snapshot.peer import TIMEOUT_S
from tests.snapshot.vms import (
    Sibling,
    Template,
    occurrences,
    read_descriptor,
    vm_process,
)
from torpor.vmprocess import Refused

pytestmark = pytest.mark.kvm

LARGE_BYTES = 64 << 20


def in_sibling(
    directory: Path, template: Template, test: Callable[[Sibling], Awaitable[None]]
) -> None:
    """Run a test on a VM process that rests at the template."""

    async def run() -> None:
        async with vm_process(directory) as process:
            vm = await Sibling.prepare(process, template)
            try:
                await test(vm)
            finally:
                vm.peer.close()

    asyncio.run(run())


async def ask(vm: Sibling, line: str) -> object:
    answer = json.loads(await vm.peer.ask(line))
    assert not (isinstance(answer, dict) and "error" in answer), answer
    return answer


async def check(vm: Sibling) -> dict[str, int]:
    answer = await ask(vm, "check")
    assert isinstance(answer, dict)
    assert answer["wrong"] == []
    return answer


def test_instances_take_turns_in_one_process(directory: Path, template: Template) -> None:
    """Each finds its own memory, again and again, and never another's."""

    async def test(vm: Sibling) -> None:
        deltas: dict[str, tuple[int, int, bytes | None]] = {
            secrets.token_hex(16): (0, 0, None) for _ in range(3)
        }
        for turn in range(15):
            uuid = list(deltas)[turn % 3]
            generation, count, delta = deltas[uuid]
            await vm.wake(uuid, generation, delta)
            for _ in range(turn % 4):
                count += 1
                assert await ask(vm, "count") == count
            assert (await check(vm))["count"] == count
            deltas[uuid] = (generation + 1, count, await vm.sleep(generation + 1))

    in_sibling(directory, template, test)


def test_swaps_of_instances_that_have_mapped_differently(
    directory: Path, template: Template
) -> None:
    """Property test: what each has mapped, protected and forked is there, however restored."""

    async def test() -> None:
        seed = int(os.environ.get("TORPOR_TEST_SEED", "") or secrets.randbelow(1 << 30))
        print(f"TORPOR_TEST_SEED={seed}")  # shown when the test fails
        chance = random.Random(seed)
        deltas: dict[str, tuple[int, bytes | None, int, int]] = {
            secrets.token_hex(16): (0, None, 0, 0) for _ in range(4)
        }
        turns = 24
        while turns > 0:
            async with vm_process(directory) as process:
                vm = await Sibling.prepare(process, template)
                retired = False
                while turns > 0 and not retired:
                    turns -= 1
                    uuid = chance.choice(list(deltas))
                    generation, delta, areas, _ = deltas[uuid]
                    await vm.wake(uuid, generation, delta)
                    assert (await check(vm))["areas"] == areas
                    if chance.randrange(4):
                        areas = int(str(await ask(vm, f"churn {chance.randrange(1 << 30)}")))
                    children = (await check(vm))["children"]
                    stored = await vm.process.standby(generation + 1, within_s=TIMEOUT_S)
                    delta = read_descriptor(stored.descriptor)
                    deltas[uuid] = (generation + 1, delta, areas, children)
                    # Where its own memory has grown past the bound.
                    retired = not await vm.process.reset()
                vm.peer.close()
        for uuid, (generation, delta, areas, children) in deltas.items():
            async with vm_process(directory) as process:
                fresh = await Sibling.prepare(process, template, never_run=True)
                await fresh.wake(uuid, generation, delta)
                answer = await check(fresh)
                assert (answer["areas"], answer["children"]) == (areas, children)
                fresh.peer.close()

    asyncio.run(test())


def test_every_restore_has_its_own_identity_and_chance(directory: Path, template: Template) -> None:
    async def test(vm: Sibling) -> None:
        seen: dict[str, set[str]] = {}
        delta: bytes | None = None
        uuid = secrets.token_hex(16)
        for turn in range(6):
            own = uuid if turn % 2 == 0 else secrets.token_hex(16)
            generation = 1 if turn > 0 and turn % 2 == 0 else 0
            await vm.wake(own, generation, delta if generation else None)
            answer = await ask(vm, "identity")
            assert isinstance(answer, dict)
            assert answer["instance"]["uuid"].replace("-", "") == own
            assert answer["instance"]["generation"] == generation
            assert answer["host"] == f"vm-{own[:8]}"
            assert answer["wiped"] == "\0" * 6
            for name in ("boot_id", "random", "uuid4", "device"):
                seen.setdefault(name, set()).add(answer[name])
            stored = await vm.sleep(1)
            if turn == 0:
                delta = stored
        assert {name: len(values) for name, values in seen.items()} == dict.fromkeys(seen, 6)

    in_sibling(directory, template, test)


def test_the_generation_differs_after_every_restore(directory: Path, template: Template) -> None:
    """As it is mapped and as it is read; who waits for a change of it is told."""

    async def test(vm: Sibling) -> None:
        seen = set()
        uuid, delta = secrets.token_hex(16), None
        for turn in range(6):
            if turn % 2 == 0:
                await vm.wake(uuid, turn, delta)
            else:
                await vm.wake(secrets.token_hex(16), 0)
            found = await ask(vm, "generation")
            assert isinstance(found, dict)
            assert found["changed"]
            assert not found["again"]
            assert found["mapped"] == found["read"] != found["first"]
            assert len(found["read"]) == 32
            seen.add(found["read"])
            stored = await vm.sleep(turn + 1 if turn % 2 else turn + 2)
            delta = stored if turn % 2 == 0 else delta
        assert len(seen) == 6

    in_sibling(directory, template, test)


def test_clocks(directory: Path, template: Template) -> None:
    """CLOCK_MONOTONIC stands still in standby, the others go on; a timer fires once."""

    async def test(vm: Sibling) -> None:
        uuid = secrets.token_hex(16)
        await vm.wake(uuid, 0)
        await ask(vm, "alarm 1.5")
        before = await ask(vm, "clocks")
        delta = await vm.sleep(1)
        await asyncio.sleep(3)
        await vm.wake(uuid, 1, delta)
        after = await ask(vm, "clocks")
        assert isinstance(before, list)
        assert isinstance(after, list)
        slept = after[1] - before[1]
        assert slept >= 3
        assert 0 <= after[0] - before[0] <= slept - 2.5
        assert abs((after[2] - before[2]) - slept) < 0.5
        assert abs(after[1] - time.time()) < 5
        fired: object = []
        for _ in range(600):
            fired = fired or await ask(vm, "timers")
            await asyncio.sleep(0.02)
        assert isinstance(fired, list)
        assert fired[0] - before[0] >= 1.3
        await asyncio.sleep(0.5)
        assert await ask(vm, "timers") == fired

    in_sibling(directory, template, test)


def test_a_bad_delta_is_refused_and_the_vm_still_usable(
    directory: Path, template: Template
) -> None:
    async def test(vm: Sibling) -> None:
        uuid = secrets.token_hex(16)
        await vm.wake(uuid, 0)
        await ask(vm, "count")
        delta = await vm.sleep(1)
        chance = random.Random(7)
        bad = [delta[:n] for n in (0, 1, 40, len(delta) // 2, len(delta) - 1)]
        for _ in range(20):
            at = chance.randrange(len(delta))
            changed = bytes([delta[at] ^ 1 << chance.randrange(8)])
            bad.append(delta[:at] + changed + delta[at + 1 :])
        for damaged in bad:
            with pytest.raises(Refused) as refused:
                await vm.wake(uuid, 1, damaged)
            assert refused.value.code == "bad_snapshot"
        with pytest.raises(Refused, match="generation 1 of instance"):
            await vm.wake(uuid, 2, delta)
        with pytest.raises(Refused, match="is wanted"):
            await vm.wake(secrets.token_hex(16), 1, delta)
        assert (await vm.process.query()).state == "resting"
        await vm.wake(uuid, 1, delta)
        assert (await check(vm))["count"] == 1

    in_sibling(directory, template, test)


def test_what_does_not_compress_is_kept_whole(directory: Path, template: Template) -> None:
    """64 MiB of random bytes: each way of putting them back gives the program what it had."""

    async def test(vm: Sibling) -> None:
        uuid = secrets.token_hex(16)
        await vm.wake(uuid, 0)
        digest = await ask(vm, f"noise {LARGE_BYTES}")
        delta = read_descriptor((await vm.process.standby(1, within_s=TIMEOUT_S)).descriptor)
        assert len(delta) > LARGE_BYTES
        # It has outgrown what may rest, so others take the state.
        assert not await vm.process.reset()
        for never_run in (False, True):
            async with vm_process(directory) as process:
                other = await Sibling.prepare(process, template, never_run=never_run)
                await other.wake(uuid, 1, delta)
                assert await ask(other, "noise") == digest
                other.peer.close()

    in_sibling(directory, template, test)


def test_a_standby_can_be_taken_back_and_a_checkpoint_goes_on(
    directory: Path, template: Template
) -> None:
    async def test(vm: Sibling) -> None:
        uuid = secrets.token_hex(16)
        await vm.wake(uuid, 0)
        await ask(vm, "count")
        os.close((await vm.process.standby(1, within_s=30)).descriptor)
        assert (await vm.process.query()).state == "stopped"
        await vm.process.run()
        assert await ask(vm, "count") == 2
        stored = await vm.process.checkpoint(2, within_s=30)
        with os.fdopen(stored.descriptor, "rb") as file:
            file.seek(0)
            branch = file.read()
        assert await ask(vm, "count") == 3
        await vm.sleep(3)
        await vm.wake(uuid, 2, branch)
        assert await ask(vm, "count") == 3

    in_sibling(directory, template, test)


def test_an_answer_waits_until_its_descriptor_may_be_sent(
    directory: Path, template: Template
) -> None:
    """All descriptors on their way between processes of the user count against one's own limit."""

    async def test(vm: Sibling) -> None:
        await vm.wake(secrets.token_hex(16), 0)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for _ in range(3):  # more than the limit of a VM process, 256
                socket.send_fds(ours, [b"x"], [template.image] * 250)
            standby = asyncio.ensure_future(vm.process.standby(1, within_s=TIMEOUT_S))
            while (await vm.process.query()).state != "stopped":  # noqa: ASYNC110 -- only if asked
                await asyncio.sleep(0)
            assert await vm.process.query()  # the answer to this one finds room
        os.close((await standby).descriptor)
        assert await vm.process.reset()

    in_sibling(directory, template, test)


def test_a_busy_guest_is_stopped_at_its_next_entry(directory: Path, template: Template) -> None:
    async def test(vm: Sibling) -> None:
        uuid = secrets.token_hex(16)
        await vm.wake(uuid, 0)
        await ask(vm, "spin")
        with pytest.raises(Refused) as refused:
            await vm.process.standby(1, within_s=0.3)
        assert refused.value.code == "busy"
        assert await ask(vm, "count") == 1
        delta = await vm.sleep(1, busy=True)
        await vm.wake(uuid, 1, delta)
        assert await ask(vm, "count") == 2
        await vm.sleep(2, busy=True)

    in_sibling(directory, template, test)


def test_nothing_of_an_instance_stays_after_a_reset(directory: Path, template: Template) -> None:
    marker = secrets.token_hex(8)

    async def test(vm: Sibling) -> None:
        await vm.wake(secrets.token_hex(16), 0)
        await ask(vm, f"hold {marker}")
        await ask(vm, "dirty 1")
        assert occurrences(vm.process.pid, marker.encode()) > 0
        await vm.sleep(1)
        assert occurrences(vm.process.pid, marker.encode()) == 0
        other = secrets.token_hex(16)
        await vm.wake(other, 0)
        await ask(vm, "count")
        assert occurrences(vm.process.pid, marker.encode()) == 0

    in_sibling(directory, template, test)

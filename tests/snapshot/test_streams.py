"""Connections of a VM while it sleeps, wakes and loses the other end of its link."""

import asyncio
import json
import random
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.snapshot.peer import Stream
from tests.snapshot.vms import Sibling, Template, read_descriptor, vm_process
from torpor.vmprocess import Unlinked

pytestmark = pytest.mark.kvm

PROGRAM = "network.py"
ECONNRESET = 104
RESET = "Connection reset by peer"
WINDOW_BYTES = 64 << 10


def in_siblings(
    directory: Path, template: Template, test: Callable[[Sibling, Sibling], Awaitable[None]]
) -> None:
    """Run a test on two VM processes that rest at the template."""

    async def run() -> None:
        async with vm_process(directory) as one, vm_process(directory) as other:
            vms = [await Sibling.prepare(process, template) for process in (one, other)]
            try:
                await test(*vms)
            finally:
                for vm in vms:
                    vm.peer.close()

    asyncio.run(run())


def pattern(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def outgoing(vm: Sibling, port: int) -> Stream:
    """A connection that the guest opens."""
    known = len(vm.peer.accepted)
    name = json.loads(await vm.peer.ask(f"connect 198.51.100.9 {port}"))
    assert name == f"out{port}"
    assert len(vm.peer.accepted) == known + 1
    return vm.peer.accepted[-1]


async def until_ended(vm: Sibling, wanted: dict[str, str | None]) -> None:
    """Wait until the program has seen these connections end so (its threads take their time)."""
    async with asyncio.timeout(60):
        while not (seen := json.loads(await vm.peer.ask("names"))).items() >= wanted.items():
            print(seen)  # shown when the test fails
            await asyncio.sleep(0.01)


def test_connections_go_on_in_another_vm_process(directory: Path, template: Template) -> None:
    """Transfers both ways are moved to and fro in their midst: no byte is lost or doubled."""
    size = 600_000
    moves = 12

    async def test(one: Sibling, other: Sibling) -> None:
        uuid = secrets.token_hex(16)
        await one.wake(uuid, 0)
        peer = one.peer
        streams = [await peer.connect(8080), await outgoing(one, 9000), await peer.connect(8080)]
        wanted = [pattern(n, size) for n in range(len(streams))]
        for stream, data in zip(streams, wanted, strict=True):
            stream.write(data)
        vms = [one, other]
        for move in range(moves):
            goal = size * (move + 1) // (moves + 1)
            await streams[0].until(lambda s, goal=goal: len(s.received) >= goal)  # type: ignore[misc]
            generation = move + 1
            delta = await vms[0].park(generation)
            vms.reverse()
            await vms[0].wake(uuid, generation, delta, peer=peer)
        for stream, data in zip(streams, wanted, strict=True):
            await stream.until(lambda s: len(s.received) == size)
            assert stream.received == data
            stream.close()
            await stream.until(lambda s: s.closed is not None)
            assert stream.closed == 0

    in_siblings(directory, template, test)


def test_an_older_generation_resets_its_connections(directory: Path, template: Template) -> None:
    async def test(one: Sibling, other: Sibling) -> None:
        uuid = secrets.token_hex(16)
        await one.wake(uuid, 0)
        peer = one.peer
        stream = await peer.connect(8080)
        stream.write(b"first")
        await stream.until(lambda s: s.received == b"first")
        old = await one.park(1)
        await one.wake(uuid, 1, old, peer=peer)
        stream.write(b", second")
        await stream.until(lambda s: s.received == b"first, second")
        await one.park(2)
        # As if generation 2 had never been committed; the peer has counted on.
        await other.wake(uuid, 1, old, peer=peer)
        await stream.until(lambda s: s.closed is not None)
        assert stream.closed == ECONNRESET
        await until_ended(other, {"in0": RESET})
        fresh = await peer.connect(8080)
        fresh.write(b"again")
        await fresh.until(lambda s: s.received == b"again")

    in_siblings(directory, template, test)


def test_connections_that_are_not_named_are_reset(directory: Path, template: Template) -> None:
    async def test(one: Sibling, other: Sibling) -> None:
        uuid = secrets.token_hex(16)
        await one.wake(uuid, 0)
        await one.peer.connect(8080)
        await outgoing(one, 9001)
        await until_ended(one, {"in0": None, "out9001": None})
        delta = await one.park(1)
        # With a peer of its own, which knows of nothing.
        await other.wake(uuid, 1, delta)
        await until_ended(other, {"in0": RESET, "out9001": RESET})
        await outgoing(other, 9002)

    in_siblings(directory, template, test)


def test_a_checkpoint_takes_a_guest_in_mid_transfer(directory: Path, template: Template) -> None:
    """The VM goes on with its connections; what is started from the checkpoint has none."""
    size = 400_000

    async def test(one: Sibling, other: Sibling) -> None:
        uuid = secrets.token_hex(16)
        await one.wake(uuid, 0)
        stream = await one.peer.connect(8080)
        data = pattern(3, size)
        stream.write(data)
        await stream.until(lambda s: len(s.received) > size // 4)
        stored = await one.process.checkpoint(1, within_s=60, busy=True)
        branch = read_descriptor(stored.descriptor)
        await stream.until(lambda s: len(s.received) == size)
        assert stream.received == data
        await other.wake(secrets.token_hex(16), 0)
        await other.park(1)
        await other.wake(uuid, 1, branch)
        await until_ended(other, {"in0": RESET})

    in_siblings(directory, template, test)


def test_a_lost_link_is_replaced(directory: Path, template: Template) -> None:
    """The guest runs on without; connections are reset, output that had nowhere to go comes."""

    async def test(one: Sibling, _: Sibling) -> None:
        process, peer = one.process, one.peer
        await one.wake(secrets.token_hex(16), 0)
        peer = one.peer
        for turn in range(4):
            inward, outward = await peer.connect(8080), await outgoing(one, 9100 + turn)
            peer.generous = False
            # Both are in the midst of something, and the ring is full of it.
            inward.write(bytes(1 << 20))
            outward.write(bytes(1 << 20))
            await inward.until(lambda s: s.may_send_bytes == 0)
            size = 200_000
            # A line that the guest has not taken when the link is lost is lost with it.
            if turn % 2:
                await peer.send_line(f"print {size}")
                await peer.until(lambda: len(peer.output) == WINDOW_BYTES)
            else:
                assert await peer.ask(f"later {size}") == "soon"
            peer.close()
            event = await asyncio.wait_for(process.events.get(), 60)
            assert isinstance(event, Unlinked)
            status = await process.query()
            assert (status.state, status.unlinked) == ("running", True)
            await asyncio.sleep(0.3)  # in which the guest may fill its ring, or not
            peer.replace_link()
            peer.generous = True
            assert peer.theirs is not None
            await process.link(peer.theirs.fileno())
            peer.handed_over()
            assert not (await process.query()).unlinked
            assert await peer.line() == json.dumps("x" * size)
            await until_ended(one, {f"in{2 * turn}": RESET, f"out{9100 + turn}": RESET})
            again = await peer.connect(8080)
            again.write(pattern(turn, 100_000))
            await again.until(lambda s: len(s.received) == 100_000)
            again.close()
        delta = await one.park(1)
        await one.wake(secrets.token_hex(16), 0)
        assert delta

    in_siblings(directory, template, test)

"""VM processes whose controller goes away, and what the next one learns."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness import DEFAULT_ENVIRONMENT
from tests.rootfs.build import root_image
from tests.snapshot.peer import Peer
from torpor.vmprocess import Boot, Ended, Launched, Origin, Refused, VMProcess, launch

pytestmark = pytest.mark.kvm

PROGRAM = """
echo up
while read line; do
    case $line in
        exit*) exit ${line#exit } ;;
        fill) head -c 32000000 /dev/urandom > /dev/shm/filled ;;
        spin) while :; do :; done ;;
    esac
    echo $line
done
"""


@contextlib.asynccontextmanager
async def booted(directory: Path) -> AsyncIterator[tuple[Launched, Peer, str]]:
    """A VM that obeys `exit N` and echoes other lines."""
    launched = await launch(directory / "control.sock")
    peer = Peer()
    image = os.open(root_image("busybox"), os.O_RDONLY | os.O_CLOEXEC)
    boot = Boot(
        owner="11" * 32,
        image="00" * 32,
        memory_limit_bytes=64 << 20,
        argv=("sh", "-c", PROGRAM),
        envp=tuple(f"{k}={v}" for k, v in DEFAULT_ENVIRONMENT.items()),
        host_name="vm",
        uuid=secrets.token_hex(16),
    )
    try:
        assert peer.theirs is not None
        await launched.process.boot(boot, image=image, console=peer.theirs.fileno())
        peer.handed_over()
        await launched.process.run()
        assert await peer.line() == "up"
        yield launched, peer, boot.uuid
    finally:
        os.close(image)
        peer.close()
        launched.process.close()
        launched.child.kill()
        launched.child.wait()


async def until_exit(launched: Launched) -> None:
    await asyncio.to_thread(launched.child.wait, 60)


def test_a_vm_runs_on_without_a_controller(tmp_path: Path) -> None:
    async def test() -> None:
        async with booted(tmp_path) as (launched, peer, uuid):
            launched.process.close()
            assert await peer.ask("still here") == "still here"
            before = 0
            for _ in range(3):
                process = await VMProcess.connect(str(launched.path))
                assert process.pid == launched.child.pid
                status = await process.query()
                assert status.state == "running"
                assert status.instance == Origin(uuid=uuid, generation=0)
                assert status.stored_generation is None
                assert not status.still
                assert 1 << 20 < status.memory_bytes < 256 << 20
                assert status.cpu_ns > before
                before = status.cpu_ns
                assert not status.unlinked
                process.close()
            process = await VMProcess.connect(str(launched.path))
            stored = await process.checkpoint(3, within_s=60)
            os.close(stored.descriptor)
            process.close()
            process = await VMProcess.connect(str(launched.path))
            status = await process.query()
            assert (status.state, status.stored_generation) == ("running", 3)
            assert status.still
            assert await peer.ask("not still any more") == "not still any more"
            assert not (await process.query()).still
            stored = await process.checkpoint(3, within_s=60, busy=True)
            os.close(stored.descriptor)
            assert not (await process.query()).still, "it may have been doing something"
            stored = await process.standby(4, within_s=60)
            os.close(stored.descriptor)
            process.close()
            # Stopped, and nobody knows whether its state was committed: it is still there.
            process = await VMProcess.connect(str(launched.path))
            status = await process.query()
            assert (status.state, status.stored_generation) == ("stopped", 4)
            again = await process.standby(4, within_s=60)
            assert again.bytes == stored.bytes
            os.close(again.descriptor)
            await process.run()
            assert await peer.ask("taken back") == "taken back"
            process.close()

    asyncio.run(test())


def test_the_next_controller_hears_how_the_vm_ended(tmp_path: Path) -> None:
    async def test() -> None:
        async with booted(tmp_path) as (launched, peer, _):
            launched.process.close()
            await peer.send_line("exit 3")
            with pytest.raises(EOFError):
                await peer.line()
            process = await VMProcess.connect(str(launched.path))
            event = await asyncio.wait_for(process.events.get(), 60)
            assert event == Ended(reason="exited", status=3 << 8)
            await until_exit(launched)
            process.close()

    asyncio.run(test())


def test_a_controller_that_is_there_hears_it_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with booted(tmp_path) as (launched, peer, _):
            await peer.send_line("exit 4")
            event = await asyncio.wait_for(launched.process.events.get(), 60)
            assert event == Ended(reason="exited", status=4 << 8)
            await until_exit(launched)

    asyncio.run(test())


def test_a_process_that_never_held_a_vm_ends_with_its_controller(tmp_path: Path) -> None:
    async def test() -> None:
        launched = await launch(tmp_path / "control.sock")
        with pytest.raises(Refused, match="the VM is empty"):
            await launched.process.link(0)
        launched.process.close()
        await until_exit(launched)

    asyncio.run(test())


def test_what_a_lost_controller_has_asked_for_and_nobody_has_begun_is_void(tmp_path: Path) -> None:
    async def test() -> None:
        async with booted(tmp_path) as (launched, peer, _):
            await peer.send_line("spin")
            asked = asyncio.create_task(launched.process.standby(5, within_s=60))
            await asyncio.sleep(0.1)
            launched.process.close()
            with pytest.raises(ConnectionError):
                await asked
            process = await VMProcess.connect(str(launched.path))
            assert not (await process.query()).busy
            stored = await process.checkpoint(6, within_s=60, busy=True)
            os.close(stored.descriptor)
            assert (await process.query()).state == "running"
            process.close()

    asyncio.run(test())


def test_the_next_controller_is_told_that_a_state_is_being_stored(tmp_path: Path) -> None:
    async def test() -> None:
        async with booted(tmp_path) as (launched, peer, _):
            assert await peer.ask("fill") == "fill"
            asked = asyncio.create_task(launched.process.standby(5, within_s=60, busy=True))
            await asyncio.sleep(0.03)
            launched.process.close()
            with pytest.raises(ConnectionError):
                await asked
            process = await VMProcess.connect(str(launched.path))
            while (status := await process.query()).busy:  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(0.01)
            # Stopped, or it goes on because nobody had begun: neither changes any more.
            await asyncio.sleep(1)
            later = await process.query()
            assert (later.state, later.stored_generation) == (
                status.state,
                status.stored_generation,
            )
            process.close()

    asyncio.run(test())

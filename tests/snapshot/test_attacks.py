"""Instances that try to leave something for the next one in their VM process, or to break it."""

import asyncio
import json
import os
import secrets
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import REPOSITORY
from tests.rootfs.build import root_image
from tests.snapshot.vms import (
    Sibling,
    Template,
    digest_in_hex,
    make_template,
    memory_file,
    occurrences,
    vm_process,
)
from torpor.vmprocess import Ended, Prepare, Refused

pytestmark = pytest.mark.kvm

MEMORY_MIB = 32


@pytest.fixture(scope="module")
def template(directory: Path) -> Iterator[Template]:
    image = root_image("programs")
    made = asyncio.run(make_template(directory, image, ["secrets"], memory_mib=MEMORY_MIB))
    yield made
    made.close()


@pytest.fixture(scope="module")
def machine(template: Template, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the template says of its VMs."""
    file = tmp_path_factory.mktemp("template") / "file"
    file.write_bytes(template.data)
    done = subprocess.run(
        [REPOSITORY / ".venv/bin/torpor-vmm", "inspect", file], check=True, capture_output=True
    )
    found: dict[str, Any] = json.loads(done.stdout)["metadata"]["machine"]
    return found


@pytest.fixture(scope="module")
def ram_bytes(machine: dict[str, Any]) -> int:
    """Guest-physical memory of the template's VMs."""
    return int(machine["ram_bytes"])


def in_sibling(
    directory: Path, template: Template, test: Callable[[Sibling], Awaitable[None]]
) -> None:
    async def run() -> None:
        async with vm_process(directory) as process:
            vm = await Sibling.prepare(process, template)
            try:
                await test(vm)
            finally:
                vm.peer.close()

    asyncio.run(run())


class Secret:
    """16 bytes that are nowhere as a whole but where an instance puts them."""

    def __init__(self) -> None:
        # The lowest bit of a page-table entry that holds it is 0.
        self.halves = ("b" + secrets.token_hex(4)[1:], "d" + secrets.token_hex(4)[1:])

    @property
    def whole(self) -> bytes:
        return "".join(self.halves).encode()

    def command(self, name: str, *more: object) -> str:
        return " ".join([name, *self.halves, *map(str, more)])


def new_uuid() -> str:
    return secrets.token_hex(16)


def test_a_secret_is_gone_before_the_next_instance_looks(
    directory: Path, template: Template, ram_bytes: int
) -> None:
    """In memory, freed memory, pipes, sockets, files, names, processes, registers, page tables."""
    secret = Secret()

    async def test(vm: Sibling) -> None:
        await vm.wake(new_uuid(), 0)
        assert await vm.peer.ask(secret.command("plant")) == "0"
        assert int(await vm.peer.ask(secret.command("scan", ram_bytes))) > 1000
        assert occurrences(vm.process.pid, secret.whole) > 1000
        assert int(await vm.peer.ask(secret.command("hide"))) > 0
        delta = await vm.sleep(1, busy=True)
        assert occurrences(vm.process.pid, secret.whole) == 0
        await vm.wake(new_uuid(), 0)
        assert await vm.peer.ask(secret.command("scan", ram_bytes)) == "0"
        other = await vm.process.standby(1, within_s=60)
        with os.fdopen(other.descriptor, "rb") as file:
            file.seek(0)
            assert len(file.read()) < len(delta)
        assert occurrences(vm.process.pid, secret.whole) == 0

    in_sibling(directory, template, test)


def test_a_program_sees_in_its_memory_that_it_is_a_clone(
    directory: Path, template: Template
) -> None:
    async def test(vm: Sibling) -> None:
        seen = set()
        uuid, delta = new_uuid(), None
        for generation in range(4):
            await vm.wake(uuid, generation, delta)
            seen.add(await vm.peer.ask("generation"))
            delta = await vm.sleep(generation + 1)
            await vm.wake(new_uuid(), 0)
            seen.add(await vm.peer.ask("generation"))
            await vm.sleep(1)
        assert {len(one) for one in seen} == {32}
        assert len(seen) == 8

    in_sibling(directory, template, test)


def test_a_mapping_is_gone_before_the_next_instance_looks(
    directory: Path, template: Template, ram_bytes: int
) -> None:
    async def test(vm: Sibling) -> None:
        await vm.wake(new_uuid(), 0)
        address = await vm.peer.ask(f"map {ram_bytes}")
        assert await vm.peer.ask(f"probe {address}") == "1"
        try:
            await vm.sleep(1)
        except (Refused, ConnectionError):
            return  # the process is not used again: as good
        await vm.wake(new_uuid(), 0)
        assert await vm.peer.ask(f"probe {address}") == "0"
        assert await vm.peer.ask("count") == "1"

    in_sibling(directory, template, test)


@pytest.mark.parametrize("what", ["boot tables", "kernel", "tables", "next to them"])
def test_a_guest_that_keeps_the_reset_from_its_tables(
    directory: Path, template: Template, machine: dict[str, Any], ram_bytes: int, what: str
) -> None:
    """Its map of some memory leads elsewhere when the kernel is to put the page tables right.

    Whatever comes of it: the process ends, or the next instance finds everything as it should be.
    """
    secret = Secret()
    tables = machine["tables"][-1][0] >> 21
    large_page = {"boot tables": 0, "kernel": 1, "tables": tables, "next to them": tables + 1}[what]

    async def test(vm: Sibling) -> None:
        await vm.wake(new_uuid(), 0)
        await vm.peer.ask(secret.command("hide"))
        assert await vm.peer.ask(f"redirect {large_page} {ram_bytes}") == "0"
        try:
            os.close((await vm.process.standby(1, within_s=20)).descriptor)
            if not await asyncio.wait_for(vm.process.reset(), 60):
                print("retired")
                return
        except (Refused, ConnectionError) as refusal:
            print(refusal)  # shown when the test fails
            return
        assert occurrences(vm.process.pid, secret.whole) == 0
        await vm.wake(new_uuid(), 0)
        assert await vm.peer.ask("count") == "1"
        assert await vm.peer.ask(secret.command("scan", ram_bytes)) == "0"

    in_sibling(directory, template, test)


def test_a_guest_that_never_gets_through_with_its_reset_ends(
    directory: Path, template: Template, ram_bytes: int
) -> None:
    async def test(vm: Sibling) -> None:
        await vm.wake(new_uuid(), 0)
        assert await vm.peer.ask(f"linger {ram_bytes}") == "0"
        os.close((await vm.process.standby(1, within_s=20)).descriptor)
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(vm.process.reset(), 60)

    in_sibling(directory, template, test)


def test_a_guest_that_parks_by_itself_ends(directory: Path, template: Template) -> None:
    async def test(vm: Sibling) -> None:
        await vm.wake(new_uuid(), 0)
        await vm.peer.send_line("park")
        ended = await asyncio.wait_for(vm.process.events.get(), 60)
        assert isinstance(ended, Ended)
        assert ended.reason == "failed"

    in_sibling(directory, template, test)


@pytest.mark.parametrize("holders", [1, 2, 3])
def test_a_warm_base_has_what_three_siblings_have(
    directory: Path, template: Template, holders: int
) -> None:
    """A secret of one or two of five is not in it; what three have is."""
    secret = Secret()

    async def test(vm: Sibling) -> None:
        deltas = []
        for number in range(5):
            await vm.wake(new_uuid(), 0)
            await vm.peer.ask("count")
            if number < holders:
                await vm.peer.ask(secret.command("plant"))
            deltas.append(await vm.sleep(1, busy=True))
        descriptors = [memory_file(delta) for delta in deltas]
        warm = await vm.process.learn(
            template.digest, template=template.file, memory=template.memory, deltas=descriptors
        )
        for descriptor in descriptors:
            os.close(descriptor)
        with os.fdopen(warm, "rb") as file:
            file.seek(0)
            content = file.read()
        digest = digest_in_hex(content)
        async with vm_process(directory) as process:
            base = memory_file(content)
            await process.prepare(
                Prepare(template=template.digest, warm_base=digest),
                template=template.file,
                memory=template.memory,
                image=template.image,
                warm_base=base,
            )
            os.close(base)
            assert (occurrences(process.pid, secret.whole) > 0) == (holders >= 3)

    in_sibling(directory, template, test)


def test_hostile_files_are_refused_and_the_vm_still_rests(
    directory: Path, template: Template
) -> None:
    """Every byte of a small delta changed, every way of cutting it, every size in it made huge."""

    async def test(vm: Sibling) -> None:
        uuid = new_uuid()
        await vm.wake(uuid, 0)
        await vm.peer.ask("count")
        delta = await vm.sleep(1)
        for at in range(len(delta)):
            changed = bytearray(delta)
            changed[at] ^= 1 << at % 8
            await _refused(vm, uuid, bytes(changed))
        for cut in range(0, len(delta), 7):
            await _refused(vm, uuid, delta[:cut])
        for at in range(0, min(len(delta) - 8, 256), 4):
            for value in (0, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1):
                huge = delta[:at] + value.to_bytes(8, "little") + delta[at + 8 :]
                if huge != delta:
                    await _refused(vm, uuid, huge)
        await vm.wake(uuid, 1, delta)
        assert await vm.peer.ask("count") == "2"

    in_sibling(directory, template, test)


async def _refused(vm: Sibling, uuid: str, delta: bytes) -> None:
    with pytest.raises(Refused) as refused:
        await vm.wake(uuid, 1, delta)
    assert refused.value.code == "bad_snapshot"


def test_hostile_templates_are_refused(directory: Path, template: Template) -> None:
    """A process that is given one says so, and can be given a good one."""

    async def test(vm: Sibling) -> None:
        size = len(template.data)
        for at in [*range(256), *range(256, size, size // 200)]:
            changed = bytearray(template.data)
            changed[at] ^= 1 << at % 8
            await _not_unpacked(vm, bytes(changed))
        for cut in range(0, size, size // 50):
            await _not_unpacked(vm, template.data[:cut])

    in_sibling(directory, template, test)


async def _not_unpacked(vm: Sibling, content: bytes) -> None:
    file = memory_file(content)
    memory = os.memfd_create("template", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with pytest.raises(Refused) as refused:
            await vm.process.unpack(digest_in_hex(content), template=file, memory=memory)
        assert refused.value.code == "bad_snapshot"
    finally:
        os.close(file)
        os.close(memory)

"""Hostile controllers: whatever is sent, a VM process answers or hangs up; its VM is as before."""

import asyncio
import contextlib
import json
import os
import random
import secrets
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rootfs.build import root_image
from tests.snapshot.vms import Sibling, Template, make_template
from torpor.vmprocess import VMProcess, launch

pytestmark = pytest.mark.kvm

COMMANDS = [
    "query",
    "boot",
    "prepare",
    "unpack",
    "learn",
    "restore",
    "standby",
    "checkpoint",
    "template",
    "reset",
    "nonsense",
]
NAMES = [
    "owner",
    "image",
    "memory_limit_bytes",
    "argv",
    "envp",
    "workdir",
    "user",
    "host_name",
    "uuid",
    "template",
    "console",
    "warm_base",
    "never_run",
    "generation",
    "delta",
    "busy",
    "within_ms",
]
ROUNDS = 1500


@pytest.fixture(scope="module")
def template(directory: Path) -> Iterator[Template]:
    made = asyncio.run(make_template(directory, root_image("programs"), ["secrets"], memory_mib=32))
    yield made
    made.close()


def value(chance: random.Random, depth: int = 0) -> Any:
    """Any JSON value, often one that a command could take."""
    kind = chance.randrange(10)
    if kind < 2:
        return chance.choice([0, 1, -1, 2**31, 2**63, 2**64, 2**64 - 1, 0.5, 33554432])
    if kind < 4:
        return chance.choice(["", "0" * 64, "f" * 32, "\0", "x" * 5000, "\ud83d\ude00", "A" * 64])
    if kind < 6:
        return chance.choice([True, False, None])
    if kind < 8 and depth < 4:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if depth < 4:
        return {chance.choice(NAMES): value(chance, depth + 1) for _ in range(chance.randrange(4))}
    return []


def body(chance: random.Random) -> bytes:
    kind = chance.randrange(12)
    if kind == 0:
        return chance.randbytes(chance.randrange(200))
    if kind == 1:
        return b"[" * chance.randrange(1, 60000)
    if kind == 2:
        return json.dumps(value(chance)).encode()
    arguments = {name: value(chance) for name in chance.sample(NAMES, chance.randrange(6))}
    request = {
        "id": chance.choice([1, 2, 2**64 - 1]),
        "command": {chance.choice(COMMANDS): arguments},
    }
    if kind == 3:
        request["more"] = 1
    return json.dumps(request).encode()


def test_requests_of_all_kinds_are_answered(directory: Path, template: Template) -> None:
    async def run() -> None:
        seed = int(os.environ.get("TORPOR_TEST_SEED", "") or secrets.randbelow(1 << 30))
        print(f"TORPOR_TEST_SEED={seed}")  # shown when the test fails
        chance = random.Random(seed)
        launched = await launch(directory / "fuzzed.sock")
        try:
            vm = await Sibling.prepare(launched.process, template)
            await vm.wake(secrets.token_hex(16), 0)
            delta = await vm.sleep(1)
            vm.process.close()
            _send_nonsense(launched.path, chance, template)
            vm.process = await VMProcess.connect(str(launched.path))
            # A lucky request may have made it run; but it is a VM, and it answers.
            status = await vm.process.query()
            if status.state == "running":
                os.close((await vm.process.standby(2, within_s=60, busy=True)).descriptor)
            if status.state != "resting":
                await vm.process.reset()
            await vm.wake(secrets.token_hex(16), 0)
            assert await vm.peer.ask("count") == "1"
            assert delta
            vm.peer.close()
            vm.process.close()
        finally:
            launched.child.kill()
            launched.child.wait()

    asyncio.run(run())


def _send_nonsense(path: Path, chance: random.Random, template: Template) -> None:
    connection = None
    answered = 0
    for _ in range(ROUNDS):
        connection = connection or _connect(path)
        content = body(chance)
        files = [
            chance.choice([template.file, template.memory, template.image, connection.fileno()])
            for _ in range(chance.choice([0, 0, 0, 1, 3, 16]))
        ]
        count, length, version, zero = len(files), len(content), 1, 0
        match chance.randrange(40):
            case 0:
                count += chance.choice([1, 7])
            case 1:
                length = chance.choice([0, length + 1, 2**32 - 1])
            case 2:
                version = chance.randrange(2, 65536)
            case 3:
                zero = 1
        datagram = struct.pack("<4sHHII", b"TPVM", version, count, length, zero) + content
        if chance.randrange(40) == 0:
            datagram = chance.randbytes(chance.randrange(1, 64))
        try:
            socket.send_fds(connection, [datagram], files)
            reply, descriptors, _, _ = socket.recv_fds(connection, 1 << 18, 16)
        except (BrokenPipeError, ConnectionResetError):
            reply, descriptors = b"", []
        for descriptor in descriptors:
            os.close(descriptor)
        if reply:
            answer = json.loads(reply[16:])
            assert ("ok" in answer) != ("error" in answer) or "event" in answer
            answered += 1
        if not reply or answer.get("id") == 0:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
    assert answered > ROUNDS // 2


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(60)
    with contextlib.chdir(path.parent):
        connection.connect(path.name)
    return connection

"""Connections that stay open while their VM sleeps: of clients, and of the guest itself."""

import asyncio
import base64
import contextlib
import http.client
import os
import random
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.test_wake_guest import ask
from tests.harness import REPOSITORY, native_command
from tests.images.standins import add_bases
from tests.rootfs.fetch import npm
from tests.server import Server, free_port
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

TIMEOUT_S = 120.0
CLIENTS = 200
CHAT_ROUNDS = 6
SLEEPS = 100
POOL = Path(__file__).parent / "postgres-pool"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("connections")
    data = directory / "data"
    data.mkdir(mode=0o700)
    # The gateway that guests see is this host's loopback address.
    (data / "config.toml").write_text('[egress]\nallow = ["127.0.0.1"]\n')
    add_bases(ImageStore(data), directory, ["oven/bun:1", "node:20-slim"])
    with Server(data) as server:
        yield server


class WebSocket:
    """A client (RFC 6455) of short texts."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.heard: list[str] = []
        self.listening = asyncio.create_task(self._listen())

    @classmethod
    async def connect(cls, port: int, host: str) -> Self:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        head = (
            f"GET /chat HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        )
        writer.write(
            f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        return cls(reader, writer)

    def say(self, text: str) -> None:
        data, mask = text.encode(), secrets.token_bytes(4)
        assert len(data) < 126
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        self.writer.write(bytes([0x81, 0x80 | len(data)]) + mask + masked)

    async def _listen(self) -> None:
        while True:
            first, length = await self.reader.readexactly(2)
            assert (first, length & 0x80) == (0x81, 0), (first, length)
            if length == 126:
                length = int.from_bytes(await self.reader.readexactly(2), "big")
            self.heard.append((await self.reader.readexactly(length)).decode())

    async def close(self) -> None:
        self.listening.cancel()
        self.writer.close()
        await asyncio.gather(self.listening, return_exceptions=True)


async def until_all_heard(sockets: list[WebSocket], count: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not all(len(one.heard) >= count for one in sockets):
            for one in sockets:
                if one.listening.done():
                    one.listening.result()
            await asyncio.sleep(0.01)


async def chat(server: Server, name: str, host: str) -> None:
    choice = random.Random(7)
    sockets = [await WebSocket.connect(server.proxy_port, host) for _ in range(CLIENTS)]
    said: list[str] = []
    try:
        for round_ in range(CHAT_ROUNDS):
            await asyncio.to_thread(server.wait_for, name, "standby")
            # One wakes the room, or many at once do.
            speakers = choice.sample(sockets, 1 if round_ % 3 else 10)
            for number, speaker in enumerate(speakers):
                text = f"{round_}.{number}"
                speaker.say(text)
                said.append(text)
            await until_all_heard(sockets, len(said))
        await asyncio.to_thread(server.wait_for, name, "standby")
        first = sockets[0].heard
        texts = Counter(line.partition(": ")[2] for line in first)
        assert texts == Counter(said), "nothing is lost, nothing doubled"
        for one in sockets:
            assert not one.listening.done()
            assert one.heard == first, "all hear the same in the same order"
    finally:
        await asyncio.gather(*(one.close() for one in sockets))


def test_a_chat_of_200_sleeps_between_messages(server: Server) -> None:
    words = ["-n", "chat", "--scale-to-zero", "idle", "--cooldown", "100ms"]
    host = server.deploy(*words, str(REPOSITORY / "examples" / "bun-chat"))
    asyncio.run(chat(server, "chat", host))


def test_a_chat_that_is_a_whole_state_of_its_own(server: Server) -> None:
    """The first start of a configuration: no template is made of it, nothing is shared."""
    server.torpor("build", "-t", "chat:latest", str(REPOSITORY / "examples" / "bun-chat"))
    spec = {
        "name": "single",
        "image": "chat:latest",
        "env": {"UNIQUE": secrets.token_hex(8)},
        "memory_mb": 256,
        "autostart": True,
        "service_group": {
            "services": [{"port": 80, "destination_port": 8080}],
            "domains": [{"name": "single"}],
        },
        "scale_to_zero": {"policy": "idle", "stateful": True, "cooldown_time_ms": 100},
    }
    (made,) = server.api("/v1/instances", [spec], "POST")["instances"]
    assert made["status"] == "success", made
    asyncio.run(chat(server, "single", "single.localhost"))


async def leave(server: Server, name: str, host: str) -> None:
    """Clients go while the room sleeps: with a reset, with an end; the others stay."""
    sockets = [await WebSocket.connect(server.proxy_port, host) for _ in range(6)]
    try:
        for leaving, is_reset in ((sockets[:2], True), (sockets[2:4], False)):
            await asyncio.to_thread(server.wait_for, name, "standby")
            for one in leaving:
                one.listening.cancel()
                connection = one.writer.get_extra_info("socket")
                if is_reset:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                one.writer.close()
            await asyncio.sleep(0.2)
        await asyncio.to_thread(server.wait_for, name, "standby")
        stay = sockets[4:]
        stay[0].say("still here")
        await until_all_heard(stay, 1)
        assert [one.heard for one in stay] == [stay[0].heard] * 2
    finally:
        await asyncio.gather(*(one.close() for one in sockets))


def test_clients_that_go_while_their_vm_sleeps(server: Server) -> None:
    words = ["-n", "left", "--scale-to-zero", "idle", "--cooldown", "100ms"]
    host = server.deploy(*words, str(REPOSITORY / "examples" / "bun-chat"))
    asyncio.run(leave(server, "left", host))


class Database:
    """PostgreSQL on this host's loopback address."""

    def __init__(self) -> None:
        self.port = free_port()
        script = f"""
            useradd -u 1000 app 2>/dev/null || echo 'app:x:1000:1000::/tmp/pg:/bin/sh' >>/etc/passwd
            export PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/tmp/pg/data LC_ALL=C HOME=/tmp/pg
            mkdir -p /tmp/pg && chown 1000 /tmp/pg
            run() {{ setpriv --reuid=1000 --regid=1000 --clear-groups -- "$@"; }}
            run initdb -U app --no-locale --encoding=UTF8 --auth=trust >/dev/null || exit 1
            exec setpriv --reuid=1000 --regid=1000 --clear-groups -- postgres \\
                -c unix_socket_directories=/tmp/pg -c listen_addresses=127.0.0.1 \\
                -c port={self.port} -c jit=off -c fsync=off
        """
        command = native_command("applications", "bash", "-c", script)
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def query(self, text: str) -> str:
        words = ["psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "app", "-XAtq", "-c", text]
        command = native_command(
            "applications", "/usr/lib/postgresql/15/bin/" + words[0], *words[1:], "postgres"
        )
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def wait(self) -> None:
        ends_s = time.monotonic() + TIMEOUT_S
        while not self._is_there():
            assert time.monotonic() < ends_s
            time.sleep(0.2)

    def _is_there(self) -> bool:
        try:
            self.query("create table used (n int, backend int)")
        except subprocess.CalledProcessError:
            return False
        return True

    def __enter__(self) -> Self:
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)  # without waiting for clients to leave
        self.process.wait(30)


def deploy_pool(server: Server, tmp_path: Path, name: str, port: int, policy: str) -> None:
    directory = tmp_path / "app"
    shutil.copytree(POOL, directory)
    npm("ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", cwd=directory)
    server.deploy(
        *("-n", name, "-M", "512", "--scale-to-zero", policy, "--cooldown", "100ms"),
        *("--env", "DATABASE_HOST=192.0.2.1", "--env", f"DATABASE_PORT={port}"),
        str(directory),
    )


def hosts_of(server: Server, name: str) -> str:
    (found,) = server.api(f"/v1/instances?name={name}&details=true")["instances"]
    return str(found["service_group"]["domains"][0]["fqdn"]).rstrip(".")


def pool_ask(server: Server, host: str, path: str) -> dict[str, object]:
    found = ask(server, host.removesuffix(".localhost"), path)
    assert isinstance(found, dict)
    return found


def test_a_pool_of_connections_lasts_100_sleeps(server: Server, tmp_path: Path) -> None:
    with Database() as database:
        deploy_pool(server, tmp_path, "pool", database.port, "idle")
        host = hosts_of(server, "pool")
        before = pool_ask(server, host, "/fill")
        assert (before["connected"], before["open"]) == (8, 8)
        backends = set()
        for number in range(SLEEPS):
            server.wait_for("pool", "standby")
            used = pool_ask(server, host, f"/use?n={number}")
            assert {**before, "backend": used["backend"]} == used
            backends.add(used["backend"])
        assert len(backends) <= 8
        assert database.query("select count(*), count(distinct n), max(n) from used") == (
            f"{SLEEPS}|{SLEEPS}|{SLEEPS - 1}"
        )
        # The database's end wakes the guest, which hears of it.
        server.wait_for("pool", "standby")
        database.query(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        ends_s = time.monotonic() + TIMEOUT_S
        while not pool_ask(server, host, "/look")["errors"]:
            assert time.monotonic() < ends_s
            time.sleep(0.1)


def test_policy_on_stays_awake_with_a_connection_of_its_own(server: Server, tmp_path: Path) -> None:
    with Database() as database:
        deploy_pool(server, tmp_path, "eager", database.port, "on")
        host = hosts_of(server, "eager")
        assert pool_ask(server, host, "/fill")["open"] == 8
        ends_s = time.monotonic() + 1.5
        while time.monotonic() < ends_s:
            assert server.state("eager") == "running"
            time.sleep(0.05)
    # The database is gone, and its connections with it.
    server.wait_for("eager", "standby")


async def _forgotten(server: Server, name: str, host: str) -> None:
    for _ in range(2):
        sockets = [await WebSocket.connect(server.proxy_port, host) for _ in range(3)]
        await asyncio.to_thread(server.wait_for, name, "standby")
        former = server.proxy()
        os.kill(former, signal.SIGKILL)
        for one in sockets:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await asyncio.wait_for(one.listening, TIMEOUT_S)
            await one.close()
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    if (await asyncio.to_thread(server.get, host))[0] == 200:
                        break
                await asyncio.sleep(0.1)
        assert server.proxy() != former
    sockets = [await WebSocket.connect(server.proxy_port, host) for _ in range(3)]
    await asyncio.to_thread(server.wait_for, name, "standby")
    sockets[0].say("still here")
    await until_all_heard(sockets, 1)
    await asyncio.gather(*(one.close() for one in sockets))


def test_what_slept_with_connections_of_a_proxy_that_is_gone_wakes(server: Server) -> None:
    """They are reset, and new ones get the numbers that they had."""
    words = ["-n", "forgotten", "--scale-to-zero", "idle", "--cooldown", "100ms"]
    host = server.deploy(*words, str(REPOSITORY / "examples" / "bun-chat"))
    asyncio.run(_forgotten(server, "forgotten", host))
    log = server.torpor("instance", "logs", "forgotten")
    assert "the VM is gone" not in log

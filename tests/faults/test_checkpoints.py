"""PostgreSQL under load is checkpointed in the background, and its VM process is killed.

What comes back is consistent, and has all that was acknowledged before the last checkpoint began.
"""

import socket
import sqlite3
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.images.standins import add_root
from tests.server import TIMEOUT_S, Server, free_port
from tests.servers import POSTGRESQL
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

CLIENTS = 3
KILLS = 2
CHECKPOINTS = 3
"""Of the running VM, before it is killed."""
NAME = "database"
TRANSACTION = """
begin;
insert into moved values (?);
update account set balance = balance - ? where id = 1;
update account set balance = balance + ? where id = 2;
commit
"""


class Lost(Exception):  # noqa: N818 -- what has happened
    """The connection has ended."""


class Client:
    """A client of PostgreSQL (protocol 3.0, simple queries), over TLS that ends at the proxy."""

    def __init__(self, port: int, *, tls: bool = True) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket = plain
        try:
            if tls:
                self._socket = context.wrap_socket(plain, server_hostname=f"{NAME}.localhost")
            words = b"".join(
                word.encode() + b"\0" for word in ("user", "app", "database", "postgres", "")
            )
            self._socket.sendall(struct.pack("!II", 8 + len(words), 3 << 16) + words)
            self._until_ready()
        except (OSError, Lost) as error:
            self._socket.close()
            raise Lost(str(error)) from error

    def close(self) -> None:
        self._socket.close()

    def query(self, text: str) -> list[list[str]]:
        """The rows. Raises Lost, and RuntimeError for an error of the database."""
        body = text.encode() + b"\0"
        try:
            self._socket.sendall(b"Q" + struct.pack("!I", 4 + len(body)) + body)
            return self._until_ready()
        except OSError as error:
            raise Lost(str(error)) from error

    def _until_ready(self) -> list[list[str]]:
        rows: list[list[str]] = []
        failure = ""
        while True:
            kind, length = struct.unpack("!cI", self._exactly(5))
            body = self._exactly(length - 4)
            if kind == b"D":
                rows.append(self._row(body))
            elif kind == b"E":
                failure = body.replace(b"\0", b" ").decode()
                if b"57P01" in body or b"57P03" in body:
                    raise Lost(failure)
            elif kind == b"Z":
                if failure:
                    raise RuntimeError(failure)
                return rows

    def _row(self, body: bytes) -> list[str]:
        (count,), at, row = struct.unpack_from("!H", body), 2, []
        for _ in range(count):
            (length,) = struct.unpack_from("!i", body, at)
            row.append(body[at + 4 : at + 4 + max(length, 0)].decode())
            at += 4 + max(length, 0)
        return row

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self._socket.recv(length - len(data))
            if not more:
                raise Lost("the database has closed the connection")
            data += more
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(port: int) -> Client:
    """A client, once the database takes it."""
    ends_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return Client(port)
        except Lost:
            assert time.monotonic() < ends_s
            time.sleep(0.1)


class Load:
    """Transactions that move money between accounts, and write down each."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.acknowledged: list[tuple[int, float]] = []
        """Numbers of transactions, and when it was known that they are committed (Unix time)."""
        self.failures: list[str] = []
        self.next = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(self) -> None:
        with connect(self.port) as client:
            while not self._over.is_set():
                with self._lock:
                    self.next += 1
                    number = self.next
                try:
                    client.query(TRANSACTION.replace("?", str(number)))
                except Lost:
                    return
                except RuntimeError as error:
                    self.failures.append(str(error))
                    return
                self.acknowledged.append((number, time.time()))

    def until_lost(self, kill: "threading.Event") -> None:
        threads = [threading.Thread(target=self.run) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        assert kill.wait(TIMEOUT_S)
        for thread in threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "config.toml").write_text("[keep]\ncheckpoint_s = 0.5\n")
    add_root(ImageStore(data), "applications", "postgres", ("bash", "-c", POSTGRESQL), ("5432",))
    with Server(data) as server:
        yield server


def committed(server: Server) -> tuple[int, float]:
    """The generation of the database's last committed state, and when it was committed."""
    path = server.data / "torpor.db"
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        found = reader.execute("SELECT generation, created_ms FROM snapshots").fetchone()
    finally:
        reader.close()
    return (0, 0.0) if found is None else (found[0], found[1] / 1000)


def test_a_killed_database_comes_back_as_at_its_last_checkpoint(server: Server) -> None:
    port = free_port()
    spec = {
        "name": NAME,
        "image": "postgres",
        "memory_mb": 512,
        "service_group": {
            "services": [{"port": port, "destination_port": 5432, "handlers": ["tls"]}],
            "domains": [{"name": NAME}],
        },
        "scale_to_zero": {"policy": "on", "stateful": True, "cooldown_time_ms": 600_000},
    }
    (made,) = server.api("/v1/instances", [spec], "POST")["instances"]
    assert made["status"] == "success", made
    server.api("/torpor/v1/prepare", [{"name": NAME}], "POST")
    server.api("/v1/instances/start", [{"name": NAME}], "PUT")
    server.wait_for(NAME, "running")
    with connect(port) as client:
        client.query(
            "create table moved (n int primary key); create table account (id int, balance int);"
            " insert into account values (1, 0), (2, 0)"
        )
    before, _ = committed(server)
    while committed(server)[0] <= before + 1:
        time.sleep(0.05)
    last = 0
    for _ in range(KILLS):
        load, kill = Load(port), threading.Event()
        load.next = last
        work = threading.Thread(target=load.until_lost, args=[kill])
        work.start()
        seen = [committed(server)]
        ends_s = time.monotonic() + TIMEOUT_S
        while len(seen) <= CHECKPOINTS or not load.acknowledged:
            now = committed(server)
            if now[0] != seen[-1][0]:
                seen.append(now)
            assert time.monotonic() < ends_s, "it is not checkpointed"
            time.sleep(0.02)
        server.kill_vm(made["uuid"])
        kill.set()
        work.join(TIMEOUT_S)
        assert not load.failures
        # The last one was begun after the one before it was committed.
        safe_s = seen[-2][1]
        with connect(port) as client:
            (balances,) = client.query(
                "select sum(balance), (select balance from account where id = 2),"
                " (select coalesce(sum(n), 0) from moved), (select max(n) from moved)"
                " from account"
            )
            assert balances[0] == "0"
            assert balances[1] == balances[2], "all of a transaction or nothing"
            there = {int(number) for (number,) in client.query("select n from moved")}
        missing = {number for number, at_s in load.acknowledged if at_s < safe_s} - there
        assert not missing, "acknowledged before the last checkpoint began"
        last = load.next
        print(f"{len(load.acknowledged)} acknowledged, {len(there)} there, generations {seen}")

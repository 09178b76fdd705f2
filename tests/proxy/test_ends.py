"""How things end: answers that come early, closes, resets, and what is counted until when."""

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.proxy.client import Client, get
from tests.proxy.daemon import Proxy, Refusal, Torpord
from tests.proxy.guest import (
    ATTACH,
    CLOSE,
    DATA,
    MESSAGE_MAX_BYTES,
    OPEN,
    OPENED,
    Connection,
    Guest,
    answer,
    echo,
    frame,
    frames,
    read_request,
)
from tests.proxy.test_tls import connect, context, frames2, listening

HOST = "app.localhost"
ASKING = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".encode()
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
ECONNRESET = 104
TIMEOUT_S = 30.0


def until(done: Callable[[], object]) -> None:
    ends_s = time.monotonic() + TIMEOUT_S
    while not done():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def read_head(connection: Connection) -> bytes:
    """A request's head; less where the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data and (more := connection.recv()):
        data += more
    return data


def answer_early(connection: Connection) -> None:
    """Answers before the request's body is through."""
    if read_head(connection):
        answer(connection, b"early")
        while connection.recv():
            pass


def stopped(fields: dict[str, Any]) -> dict[str, Any]:
    raise Refusal("stopped", f"{fields}")


def switched(client: Client) -> None:
    client.send(ASKING)
    assert client.head().status == 101


def test_an_early_answer_does_not_hold_up_the_next_request(proxy: Proxy, torpord: Torpord) -> None:
    torpord.attach(Guest(answer_early), torpord.group([HOST]))
    head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\nbegin"
    with Client(proxy.address) as slow:
        slow.send(head.encode())
        assert slow.answer().body == b"early"
        with Client(proxy.address) as other:
            other.socket.settimeout(20)  # less than a body that does not go on may take
            assert other.get(HOST).body == b"early"


def test_a_silent_instance_is_served_without_torpord(proxy: Proxy, torpord: Torpord) -> None:
    torpord.attach(Guest(echo), torpord.group([HOST]), cooldown_ms=200)
    assert get(proxy.address, HOST).status == 200
    torpord.on["idle"] = lambda _: {"parked": False, "why": "no"}
    torpord.close()
    time.sleep(2.5)  # its cool-down is over
    with Client(proxy.address) as client:
        client.socket.settimeout(20)
        assert client.get(HOST).status == 200


def test_who_waits_for_a_slot_is_bounded_for_each_host(proxy: Proxy, torpord: Torpord) -> None:
    release = threading.Event()

    def program(connection: Connection) -> None:
        read_request(connection)
        release.wait(60)
        answer(connection, b"done")

    torpord.on["wake"] = stopped
    torpord.attach(Guest(program), torpord.group([HOST], soft_limit=1, hard_limit=1))
    clients = [Client(proxy.address) for _ in range(1100)]
    poller = select.poll()
    for client in clients:
        client.send(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        poller.register(client.socket, select.POLLIN)
    try:
        until(lambda: len(poller.poll(0)) >= 50)
    finally:
        release.set()
        for client in clients:
            client.socket.close()


def test_what_the_guest_has_closed_is_not_held_by_its_client(
    proxy: Proxy, torpord: Torpord
) -> None:
    def program(connection: Connection) -> None:
        read_request(connection)
        connection.send(SWITCHING + b"bye")
        connection.close()

    torpord.attach(Guest(program), torpord.group([HOST]))
    with Client(proxy.address) as client:
        switched(client)
        assert client.exactly(3) == b"bye"
        assert client.ended()
        until(lambda: torpord.ask("stats")["links"][0]["connections"] == 0)


def test_a_guest_s_reset_is_no_end(proxy: Proxy, torpord: Torpord) -> None:
    def program(connection: Connection) -> None:
        read_request(connection)
        connection.send(SWITCHING + b"part")
        time.sleep(0.5)  # that was passed on
        connection.close(ECONNRESET)

    torpord.attach(Guest(program), torpord.group([HOST]))
    with Client(proxy.address) as client:
        switched(client)
        assert client.exactly(4) == b"part"
        with pytest.raises(ConnectionResetError):
            client.socket.recv(1)


def test_a_client_s_reset_is_no_end(proxy: Proxy, torpord: Torpord) -> None:
    closes: list[int] = []

    class Noting(Guest):
        def _take(self, stream: int, kind: int, payload: bytes, argument: int) -> None:
            if kind == CLOSE:
                closes.append(argument)
            super()._take(stream, kind, payload, argument)

    def program(connection: Connection) -> None:
        read_request(connection)
        connection.send(SWITCHING)
        while connection.recv():
            pass

    torpord.attach(Noting(program), torpord.group([HOST]))
    client = Client(proxy.address)
    switched(client)
    client.send(b"half of a fil")
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()
    until(lambda: closes)
    assert closes == [ECONNRESET]


def test_cookies_of_http2_are_one_field(tmp_path: Path) -> None:
    """RFC 9113, 8.2.3: they are put together before a request goes on over HTTP/1."""
    proxy = Proxy(tmp_path, "--tls", "127.0.0.1:0")
    torpord = Torpord(proxy.data)
    seen: list[bytes] = []

    def program(connection: Connection) -> None:
        seen.append(read_head(connection))
        answer(connection, b"")

    try:
        services = [{"port": 443, "destination_port": 8080, "handlers": ["http", "tls"]}]
        torpord.attach(Guest(program), torpord.group([HOST], services=services))
        head = b"\x82\x87\x84\x41" + bytes([len(HOST)]) + HOST.encode()
        head += b"\x0f\x11\x03a=1\x0f\x11\x03b=2"
        with connect(proxy.addresses["proxy-tls"], context(proxy, "h2")) as tls:
            preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            tls.sendall(preface + frames2(4, 0, 0) + frames2(1, 5, 1, head))
            until(lambda: seen)
        cookies = [line for line in seen[0].lower().split(b"\r\n") if line.startswith(b"cookie:")]
        assert cookies == [b"cookie: a=1; b=2"]
    finally:
        torpord.close()
        proxy.close()


def test_requests_over_tls_count_once(tmp_path: Path) -> None:
    """On a port other than 443, where what comes may be of any protocol."""
    proxy = Proxy(tmp_path, "--tls", "127.0.0.1:0")
    torpord = Torpord(proxy.data, {"wake": stopped})
    try:
        port = listening(torpord)
        services = [{"port": port, "destination_port": 8080, "handlers": ["http", "tls"]}]
        group = torpord.group([HOST], services=services)
        torpord.attach(Guest(echo), group, requests_max=1)
        with connect(("127.0.0.1", port), context(proxy)) as tls:
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert tls.recv(100).startswith(b"HTTP/1.1 200")
        assert torpord.ask("stats")["links"][0]["requests"] == 1
    finally:
        torpord.close()
        proxy.close()


def test_a_last_word_that_was_not_delivered(proxy: Proxy, torpord: Torpord) -> None:
    """Both ends have closed a stream, and the VM is put down before it has read our CLOSE."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)
    ends = SimpleNamespace(generation=1, theirs=theirs)
    group = torpord.group([HOST])
    instance = torpord.attach(cast("Any", ends), group, policy="idle")
    clients: list[Client] = []
    numbers: list[int] = []
    sent: dict[int, int] = {}
    got: dict[int, int] = {}

    def take(message: bytes) -> list[int]:
        """The streams that something was said on."""
        spoken = []
        for stream, kind, payload, _ in frames(message):
            if kind == OPEN:
                got[stream] = 0
                ours.send(frame(stream, OPENED))
            elif kind == DATA:
                got[stream] += len(payload)
                spoken.append(stream)
        return spoken

    for _ in range(60):
        client = Client(proxy.address)
        client.send(ASKING)
        spoken: list[int] = []
        while not spoken:
            spoken = take(ours.recv(MESSAGE_MAX_BYTES))
        ours.send(frame(spoken[0], DATA, SWITCHING))
        sent[spoken[0]] = len(SWITCHING)
        assert client.head().status == 101
        clients.append(client)
        numbers.append(spoken[0])
    # Nothing is read while clients send on: the socket takes no more.
    for client in clients[:-2]:
        client.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.socket.send(bytes(64 << 10))
        client.socket.setblocking(True)
    time.sleep(1)
    ours.send(frame(numbers[-1], CLOSE))
    assert clients[-1].ended()
    clients[-1].socket.close()
    time.sleep(0.3)
    torpord.ask("park", instance=instance, generation=1, drain_ms=0)
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            take(ours.recv(MESSAGE_MAX_BYTES))
    torpord.ask("detach", instance=instance, generation=1, why="stopped", parked=True)
    ours.close()
    ours, ends.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends.generation = 2
    torpord.attach(cast("Any", ends), group, instance, resumed=True, policy="idle")
    ours.settimeout(10)
    told: list[tuple[int, int, bytes, int]] = []
    while (numbers[-1], CLOSE) not in [(stream, kind) for stream, kind, _, _ in told] or len(
        [1 for _, kind, _, _ in told if kind == ATTACH]
    ) < len(numbers) - 1:
        told += frames(ours.recv(MESSAGE_MAX_BYTES))
    attached = {stream: payload for stream, kind, payload, _ in told if kind == ATTACH}
    assert set(attached) == set(numbers[:-1])
    for stream, payload in attached.items():
        assert struct.unpack("<QQ", payload) == (got[stream], sent[stream])
    ours.close()
    for client in clients:
        client.socket.close()

"""Clients that mean harm: bounded, answered, and never taken for someone else."""

import contextlib
import re
import socket
import struct
import threading

import pytest

from tests.proxy.client import Client, get
from tests.proxy.daemon import Proxy, Torpord
from tests.proxy.guest import Connection, Guest, answer, dechunk

HOST = "app.localhost"
_SEEN: list[bytes] = []


def strict(connection: Connection) -> None:
    """Reads requests by the letter of RFC 9112, and notes every request line that it sees."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            more = connection.recv()
            if not more:
                return
            data += more
        head, _, data = data.partition(b"\r\n\r\n")
        _SEEN.append(head)
        chunked = re.search(rb"(?i)^transfer-encoding: *chunked", head, re.MULTILINE)
        length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
        assert not (chunked and length), head
        if chunked:
            while not data.endswith(b"0\r\n\r\n"):
                more = connection.recv()
                if not more:
                    return
                data += more
            dechunk(data)
            data = b""
        while len(data) < int(length[1] if length else 0):
            more = connection.recv()
            if not more:
                return
            data += more
        data = data[int(length[1]) :] if length else data
        answer(connection, b"seen")


@pytest.fixture
def seen(proxy: Proxy, torpord: Torpord) -> list[bytes]:  # noqa: ARG001
    _SEEN.clear()
    torpord.attach(Guest(strict), torpord.group([HOST]))
    return _SEEN


def exchange(proxy: Proxy, data: bytes) -> list[int]:
    """Sends bytes, ends, and returns the statuses of what is answered."""
    with Client(proxy.address) as client:
        client.send(data)
        with contextlib.suppress(OSError):  # it may have answered, and be gone, before it had all
            client.socket.shutdown(socket.SHUT_WR)
        text = b""
        while True:
            try:
                more = client.socket.recv(1 << 16)
            except ConnectionResetError:
                break
            if not more:
                break
            text += more
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", text)]


BASE = f"Host: {HOST}\r\n".encode()
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: app.localhost\r\n\r\n"

REFUSED = {
    "two-lengths": b"POST / HTTP/1.1\r\n" + BASE
    + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "list-of-lengths": b"POST / HTTP/1.1\r\n" + BASE + b"Content-Length: 5, 6\r\n\r\nhello!",
    "negative-length": b"POST / HTTP/1.1\r\n" + BASE + b"Content-Length: -1\r\n\r\n",
    "plus-length": b"POST / HTTP/1.1\r\n" + BASE + b"Content-Length: +5\r\n\r\nhello",
    "hex-length": b"POST / HTTP/1.1\r\n" + BASE + b"Content-Length: 0x5\r\n\r\nhello",
    "huge-length": b"POST / HTTP/1.1\r\n" + BASE
    + b"Content-Length: 99999999999999999999\r\n\r\n",
    "unknown-coding": b"POST / HTTP/1.1\r\n" + BASE + b"Transfer-Encoding: xchunked\r\n\r\n",
    "coding-behind-chunked": b"POST / HTTP/1.1\r\n" + BASE
    + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two-codings": b"POST / HTTP/1.1\r\n" + BASE
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked-in-1.0": b"POST / HTTP/1.0\r\n" + BASE
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "space-before-colon": b"POST / HTTP/1.1\r\n" + BASE + b"Content-Length : 5\r\n\r\nhello",
    "tab-in-name": b"GET / HTTP/1.1\r\n" + BASE + b"X\tY: 1\r\n\r\n",
    "obs-fold": b"GET / HTTP/1.1\r\n" + BASE + b"X-One: a\r\n b\r\n\r\n",
    "fold-first": b"GET / HTTP/1.1\r\n X-One: a\r\n" + BASE + b"\r\n",
    "bare-cr": b"GET / HTTP/1.1\r\n" + BASE + b"X-One: a\rTransfer-Encoding: chunked\r\n\r\n",
    "nul": b"GET / HTTP/1.1\r\n" + BASE + b"X-One: a\0b\r\n\r\n",
    "no-colon": b"GET / HTTP/1.1\r\n" + BASE + b"garbage\r\n\r\n",
    "empty-name": b"GET / HTTP/1.1\r\n" + BASE + b": x\r\n\r\n",
    "no-host": b"GET / HTTP/1.1\r\n\r\n",
    "two-hosts": b"GET / HTTP/1.1\r\n" + BASE + b"Host: other.localhost\r\n\r\n",
    "twice-the-host": b"GET / HTTP/1.1\r\n" + BASE + BASE + b"\r\n",
    "host-with-path": b"GET / HTTP/1.1\r\nHost: app.localhost/x\r\n\r\n",
    "host-with-user": b"GET / HTTP/1.1\r\nHost: x@app.localhost\r\n\r\n",
    "host-with-space": b"GET / HTTP/1.1\r\nHost: app.localhost x\r\n\r\n",
    "host-not-text": b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    "empty-host": b"GET / HTTP/1.1\r\nHost: \r\n\r\n",
    "target-of-another": b"GET http://other.localhost/ HTTP/1.1\r\n" + BASE + b"\r\n",
    "target-with-user": b"GET http://x@app.localhost/ HTTP/1.1\r\n" + BASE + b"\r\n",
    "connect": b"CONNECT app.localhost:443 HTTP/1.1\r\n" + BASE + b"\r\n",
    "version": b"GET / HTTP/9.9\r\n" + BASE + b"\r\n",
    "no-version": b"GET /\r\n\r\n",
    "method": b"G T / HTTP/1.1\r\n" + BASE + b"\r\n",
    "control-in-target": b"GET /\x01 HTTP/1.1\r\n" + BASE + b"\r\n",
    "tls-on-plain": bytes([22, 3, 1, 0, 100, 1, 0, 0, 96, 3, 3]) + bytes(90),
    "http2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "many-fields": b"GET / HTTP/1.1\r\n" + BASE + b"X: 1\r\n" * 5000 + b"\r\n",
    "long-field": b"GET / HTTP/1.1\r\n" + BASE + b"X: " + b"a" * (1 << 20) + b"\r\n\r\n",
    "long-target": b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n" + BASE + b"\r\n",
    "long-method": b"A" * (1 << 20),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_mean_two_things_is_refused(proxy: Proxy, seen: list[bytes], name: str) -> None:
    """And nothing behind it is taken for a request."""
    statuses = exchange(proxy, REFUSED[name] + SMUGGLED)
    assert len(statuses) <= 1, statuses
    assert all(400 <= status < 600 for status in statuses), statuses
    assert seen == []
    assert get(proxy.address, HOST).status == 200


@pytest.mark.parametrize("first", [b"Content-Length: 4\r\n", b""])
@pytest.mark.parametrize("last", [b"Content-Length: 4\r\n", b""])
def test_a_length_beside_chunked_is_void_and_ends_the_connection(
    proxy: Proxy, seen: list[bytes], first: bytes, last: bytes
) -> None:
    """RFC 9112, 6.1 and 6.3; the guest sees one framing."""
    chunk = b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n"
    head = b"POST /one HTTP/1.1\r\n" + BASE + first + b"Transfer-Encoding: chunked\r\n" + last
    assert exchange(proxy, head + b"\r\n" + chunk + SMUGGLED) == [200]
    assert [line.split()[1] for line in seen] == [b"/one"]
    assert b"content-length" not in seen[0].lower()


@pytest.mark.parametrize(
    "chunks",
    [
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5 \x00\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5;" + b"x" * (1 << 20) + b"\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_broken_chunks_end_the_request(proxy: Proxy, seen: list[bytes], chunks: bytes) -> None:
    statuses = exchange(
        proxy,
        b"POST / HTTP/1.1\r\n" + BASE + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + SMUGGLED,
    )
    assert len(statuses) <= 1
    assert all(status >= 400 for status in statuses), statuses
    assert all(b"/smuggled" not in head for head in seen)
    assert get(proxy.address, HOST).status == 200


def test_pipelined_requests_are_answered_in_order(proxy: Proxy, seen: list[bytes]) -> None:
    data = b"".join(b"GET /%d HTTP/1.1\r\n" % n + BASE + b"\r\n" for n in range(50))
    assert exchange(proxy, data) == [200] * 50
    assert [head.split()[1] for head in seen] == [b"/%d" % n for n in range(50)]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * (128 << 10) + b" HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * (128 << 10) + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 128,
    ],
    ids=["target", "field", "fields"],
)
def test_a_head_that_is_too_large(proxy: Proxy, seen: list[bytes], head: bytes) -> None:
    """It is refused, its connection ends, and the guest hears nothing of it."""
    with Client(proxy.address) as client:
        with contextlib.suppress(OSError):  # it need not be read to its end
            client.send(head + b"Host: app.localhost\r\n\r\n")
        assert client.answer().status in (414, 431)
        assert client.ended()
    assert seen == []
    assert get(proxy.address, HOST).status == 200


def test_a_slow_head_is_given_up(proxy: Proxy, seen: list[bytes]) -> None:  # noqa: ARG001
    """Ten seconds for a head, however steadily it drips; an idle connection may be silent."""
    with Client(proxy.address) as idle, Client(proxy.address) as client:
        assert idle.get(HOST).status == 200
        client.send(b"GET / HTTP/1.1\r\nX: ")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.5):
                try:
                    client.send(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert client.head().status == 408
        stop.set()
        dripping.join()
        assert idle.get(HOST).status == 200


def test_a_thousand_slow_clients_keep_nobody_waiting(
    proxy: Proxy,
    seen: list[bytes],  # noqa: ARG001
) -> None:
    slow = [socket.create_connection(proxy.address) for _ in range(1000)]
    for one in slow:
        one.send(b"GET / HT")
    assert get(proxy.address, HOST).status == 200
    for one in slow:
        one.close()


def test_waiting_requests_are_bounded(proxy: Proxy, torpord: Torpord) -> None:
    """Those past the limit are told so at once, the others wait."""
    release = threading.Event()

    def wake(_: dict[str, object]) -> dict[str, object]:
        release.wait(30)
        return {}

    torpord.on["wake"] = wake
    clients = [Client(proxy.address) for _ in range(1100)]
    for client in clients:
        client.send(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    refused = clients[-1].answer()
    assert (refused.status, refused.fields["retry-after"]) == (503, "1")
    assert torpord.count("wake") == 1
    release.set()
    for client in clients:
        client.socket.close()


def test_clients_that_reset_are_forgotten(proxy: Proxy, seen: list[bytes]) -> None:  # noqa: ARG001
    for n in range(200):
        one = socket.create_connection(proxy.address)
        one.send(b"GET / HTTP/1.1\r\n" + BASE + (b"\r\n" if n % 2 else b""))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    assert get(proxy.address, HOST).status == 200

"""Requests to instances that run."""

import hashlib
import http.client
import socket
import threading
import time
import uuid

import pytest

from tests.proxy.client import Client, get
from tests.proxy.daemon import Proxy, Refusal, Torpord
from tests.proxy.guest import Connection, Guest, answer, dechunk, echo, read_request


def test_a_request_reaches_its_program(proxy: Proxy, torpord: Torpord) -> None:
    guest = Guest(echo)
    torpord.attach(guest, torpord.group(["app.localhost"]))
    with Client(proxy.address) as client:
        for n in range(20):
            got = client.get(
                "App.Localhost:8080", f"/path?n={n}", "X-Own: yes", "Connection: x-own"
            )
            lines = got.body.decode().splitlines()
            assert (got.status, lines[0]) == (200, f"GET /path?n={n} HTTP/1.1")
            assert "x-own: yes" not in lines
            assert "host: App.Localhost:8080" in lines
            assert "x-forwarded-for: 127.0.0.1" in lines
    assert guest.accepted == 1, "one connection to the guest serves them all"
    assert get(proxy.address, "other.localhost").status == 404
    assert torpord.count("wake") == 1


def test_bodies_travel_both_ways_at_the_readers_pace(proxy: Proxy, torpord: Torpord) -> None:
    """Eight MiB there and back, chunked, through windows of some KiB."""
    size = 8 << 20

    def program(connection: Connection) -> None:
        data = bytearray()
        while not data.endswith(b"0\r\n\r\n"):
            data += connection.recv()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        body = dechunk(data.partition(b"\r\n\r\n")[2])
        for at in range(0, len(body), 10_000):
            piece = body[at : at + 10_000]
            connection.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        connection.send(b"0\r\n\r\n")

    torpord.attach(Guest(program), torpord.group(["app.localhost"]))
    body = hashlib.shake_128(b"body").digest(size)
    with Client(proxy.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n")

        def write() -> None:
            for at in range(0, size, 100_000):
                piece = body[at : at + 100_000]
                client.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            client.send(b"0\r\n\r\n")

        writer = threading.Thread(target=write)
        writer.start()
        got = client.answer()
        writer.join()
    assert got.body == body


def test_a_slow_client_stalls_its_program_alone(proxy: Proxy, torpord: Torpord) -> None:
    sent = 0

    def program(connection: Connection) -> None:
        nonlocal sent
        request = read_request(connection)
        if request is None or b"/big" not in request[0]:
            return answer(connection, b"small")
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        while sent < 100_000_000:
            connection.send(b"x" * 50_000)
            sent += 50_000
        return None

    torpord.attach(Guest(program), torpord.group(["app.localhost"]))
    with Client(proxy.address) as client:
        client.send(b"GET /big HTTP/1.1\r\nHost: app.localhost\r\n\r\n")
        before = -1
        while sent != before or sent == 0:
            before = sent
            time.sleep(0.5)
        assert sent < 20_000_000
        assert get(proxy.address, "app.localhost").body == b"small"
        client.head()
        rest = 100_000_000
        while rest:
            rest -= len(client.exactly(min(rest, 1 << 16)))


def test_an_upgraded_connection_passes_bytes(proxy: Proxy, torpord: Torpord) -> None:
    def program(connection: Connection) -> None:
        request = read_request(connection)
        assert request is not None
        assert request[1]["upgrade"] == "websocket"
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\n"
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly"
        )
        while data := connection.recv():
            connection.send(data.upper())

    torpord.attach(Guest(program), torpord.group(["app.localhost"]))
    fields = ("Connection: Upgrade", "Upgrade: websocket")
    with Client(proxy.address) as client:
        client.send(
            "\r\n".join(["GET / HTTP/1.1", "Host: app.localhost", *fields, "", ""]).encode()
            + b"at once "
        )
        assert client.head().status == 101
        assert client.exactly(5) == b"early"
        assert client.exactly(8) == b"AT ONCE "
        for word in (b"hello", b"x" * 100_000):
            client.send(word)
            assert client.exactly(len(word)) == word.upper()
        client.socket.shutdown(socket.SHUT_WR)
        assert client.ended()


def test_a_program_that_is_starting_is_waited_for(proxy: Proxy, torpord: Torpord) -> None:
    guest = Guest(echo, refuse=(8080,))
    torpord.attach(guest, torpord.group(["app.localhost"]))
    timer = threading.Timer(0.5, lambda: setattr(guest, "refuse", ()))
    timer.start()
    assert get(proxy.address, "app.localhost").status == 200
    timer.join()


def test_a_killed_vm_is_a_bad_gateway_and_reported(proxy: Proxy, torpord: Torpord) -> None:
    def program(connection: Connection) -> None:
        read_request(connection)
        connection.guest.die()

    group = torpord.group(["app.localhost"])
    instance = torpord.attach(Guest(program), group)
    assert get(proxy.address, "app.localhost").status == 502
    lost = torpord.lost_link(instance)
    assert (lost["generation"], lost["link"], lost["requests"]) == (1, 0, 1)
    assert lost["tx_bytes"] > 0, "what went to the guest is counted"
    assert instance in proxy.logged()


@pytest.mark.parametrize(
    ("retry", "method", "body", "status"),
    [
        (True, "GET", b"", 200),
        (True, "DELETE", b"", 200),
        (True, "PUT", b"with a body", 502),
        (True, "POST", b"", 502),
        (False, "GET", b"", 502),
    ],
)
def test_only_what_may_be_repeated_is_where_the_service_says_so(
    proxy: Proxy, torpord: Torpord, retry: bool, method: str, body: bytes, status: int
) -> None:
    """The VM dies when it has read the request; its next life would answer."""
    group = str(uuid.uuid4())
    document = {
        "group": group,
        "hosts": ["app.localhost"],
        "services": [
            {
                "port": 80,
                "destination_port": 8080,
                "handlers": ["http"],
                "retry_idempotent": retry,
            }
        ],
    }
    torpord.ask("group", **document)

    def program(connection: Connection) -> None:
        read_request(connection)
        connection.guest.die()

    instance = torpord.attach(Guest(program), group)

    def wake(_: dict[str, object]) -> dict[str, object]:
        torpord.ask("group", **document)
        torpord.attach(Guest(echo, generation=2), group, instance)
        return {"group": group, "instance": instance, "generation": 2}

    torpord.on["wake"] = wake
    with Client(proxy.address) as client:
        head = f"{method} / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.send(head.encode() + body)
        assert client.answer().status == status
    assert torpord.count("wake") == (status == 200)


def test_a_request_follows_the_opening_of_its_connection(proxy: Proxy, torpord: Torpord) -> None:
    """It does not wait until the guest has accepted."""
    torpord.attach(Guest(echo, hesitates=True), torpord.group(["app.localhost"]))
    assert get(proxy.address, "app.localhost").status == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("refuses", [False, True])
def test_a_request_that_did_not_reach_the_guest_goes_to_its_next_life(
    proxy: Proxy, torpord: Torpord, method: str, refuses: bool
) -> None:
    """The VM dies before it accepts: the instance is woken again, and answers."""
    group = torpord.group(["app.localhost"])
    first = Guest(echo, refuse=(8080,)) if refuses else Guest(echo, dies_before=True)
    instance = torpord.attach(first, group)

    def wake(fields: dict[str, object]) -> dict[str, object]:
        assert fields["host"] == "app.localhost"
        torpord.ask("group", **document)
        torpord.attach(Guest(echo, generation=1), group, instance)
        return {"group": group, "instance": instance, "generation": 1}

    document = {
        "group": group,
        "hosts": ["app.localhost"],
        "services": [{"port": 80, "destination_port": 8080, "handlers": ["http"]}],
    }
    torpord.on["wake"] = wake
    timer = threading.Timer(0.2, first.die)
    timer.start()
    with Client(proxy.address) as client:
        client.send(f"{method} / HTTP/1.1\r\nHost: app.localhost\r\n\r\n".encode())
        assert client.answer().status == 200
    timer.join()
    assert torpord.count("wake") == 1


def test_output_is_told_and_kept_while_nobody_listens(proxy: Proxy, torpord: Torpord) -> None:
    guest = Guest(echo)
    instance = torpord.attach(guest, None)
    guest.write(b"hello\n")
    torpord.wait_for(lambda: torpord.output(instance) == b"hello\n")
    torpord.close()
    for _ in range(40):
        guest.write(b"x" * 10_000)
        time.sleep(0.001)
    guest.write(b"the end")
    deadline = time.monotonic() + 30
    again = Torpord(proxy.data)
    while not again.output(instance).endswith(b"the end") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert again.output(instance).endswith(b"the end")
    assert len(again.output(instance)) <= 400_007
    nothing = {"requests": 0, "rx_bytes": 0, "tx_bytes": 0}
    known = {"instance": instance, "generation": 1, "quiet": False, **nothing}
    assert again.welcome["links"] == [known]
    again.close()


def test_running_instances_are_served_without_torpord(proxy: Proxy, torpord: Torpord) -> None:
    torpord.attach(Guest(echo), torpord.group(["app.localhost"]))
    torpord.close()
    assert get(proxy.address, "app.localhost").status == 200
    again = Torpord(proxy.data)
    assert get(proxy.address, "app.localhost").status == 200
    again.close()


def test_a_newer_torpord_replaces_the_older(proxy: Proxy, torpord: Torpord) -> None:
    newer = Torpord(proxy.data)
    assert torpord.gone.wait(30)
    assert newer.ask("stats")["links"] == []
    newer.close()


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"TPPX",
        b"TPPX\x02\0\0\0\x02\0\0\0\0\0\0\0{}",
        b"TPPX\x01\0\0\0\x02\0\0\0\0\0\0\0{}",
        b"TPPX\x01\0\0\0\x09\0\0\0\0\0\0\0not json!",
        b"TPPX\x01\0\0\0\x16\0\0\0\0\0\0\0" + b'{"id":1,"ask":{"x":1}}',
    ],
)
def test_what_breaks_the_protocol_ends_the_connection(
    proxy: Proxy, torpord: Torpord, datagram: bytes
) -> None:
    if datagram:
        torpord.send_raw(datagram)
        assert torpord.gone.wait(30)
    again = Torpord(proxy.data)
    assert again.ask("stats")["links"] == []
    again.close()


def test_ports_are_opened_when_they_are_asked_for(torpord: Torpord) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Refusal, match="in_use"):
            torpord.ask("listen", port=port)
    torpord.ask("listen", port=port)
    torpord.ask("listen", port=port)
    torpord.attach(
        Guest(echo),
        torpord.group(["app.localhost"], services=[{"port": port, "destination_port": 99}]),
    )
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(2):
        connection.request("GET", "/", headers={"Host": "app.localhost"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()[:5]) == (200, b"GET /"), "also behind the close"
        torpord.ask("close", port=port)
    connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    torpord.ask("listen", port=port)
    assert get(("127.0.0.1", port), "app.localhost").status == 200
    # It is free at once, without a turn of the proxy's loop in between.
    for _ in range(20):
        for begun in [torpord.begin(what, port=port) for what in ("close", "listen")]:
            torpord.answer(begun)
    assert get(("127.0.0.1", port), "app.localhost").status == 200
    assert torpord.ask("ports", after=0) == {"ports": [80, port], "more": False}
    assert torpord.ask("ports", after=port) == {"ports": [], "more": False}


def test_violations_of_the_frames_end_the_vm(proxy: Proxy, torpord: Torpord) -> None:
    guest = Guest(echo)
    instance = torpord.attach(guest, torpord.group(["app.localhost"]))
    guest.say(b"\x01\0\0\0\x63\0\0\0\0\0\0\0\0\0\0\0")
    assert torpord.lost_link(instance)["requests"] == 0
    assert "broke the protocol" in proxy.logged()

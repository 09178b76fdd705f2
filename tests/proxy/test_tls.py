"""TLS by server name, HTTP/2, redirects, limits, and what is told of requests."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.client import Client, get
from tests.proxy.daemon import Proxy, Refusal, Torpord
from tests.proxy.guest import Connection, Guest, answer, echo, end_all, read_request

HOST = "app.localhost"
SERVICES = [
    {"port": 80, "destination_port": 8080, "handlers": ["http", "redirect"]},
    {"port": 443, "destination_port": 8080, "handlers": ["http", "tls"]},
]


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    options = ["--tls", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    started = Proxy(tmp_path, *options, "--access-log", str(tmp_path / "access.log"))
    yield started
    started.close()
    end_all()
    print(started.logged())  # shown when the test fails


def context(proxy: Proxy, *protocols: str) -> ssl.SSLContext:
    """One that trusts what the proxy says of local names."""
    trusting = ssl.create_default_context()
    authority = proxy.data / "certs" / "local-ca.crt"
    if authority.exists():
        trusting.load_verify_locations(authority)
    else:
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
    if protocols:
        trusting.set_alpn_protocols(list(protocols))
    return trusting


def connect(address: tuple[str, int], trusting: ssl.SSLContext, name: str = HOST) -> ssl.SSLSocket:
    return trusting.wrap_socket(socket.create_connection(address, 30), server_hostname=name)


def https(proxy: Proxy, path: str = "/", *, name: str = HOST, host: str = HOST) -> tuple[int, str]:
    with connect(proxy.addresses["proxy-tls"], context(proxy), name) as tls:
        tls.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        response = http.client.HTTPResponse(tls)
        response.begin()
        return response.status, response.read().decode()


def test_tls_ends_at_the_proxy_with_a_certificate_of_the_name(
    proxy: Proxy, torpord: Torpord
) -> None:
    torpord.attach(Guest(echo), torpord.group([HOST, "b.localhost"], services=SERVICES))
    status, _ = https(proxy)
    assert status == 200
    assert (proxy.data / "certs" / "local-ca.key").stat().st_mode & 0o077 == 0
    status, body = https(proxy, "/path")
    assert status == 200, "verified against the local authority"
    assert body.splitlines()[0] == "GET /path HTTP/1.1"
    assert "x-forwarded-proto: https" in body
    assert https(proxy, name="b.localhost", host="b.localhost")[0] == 200
    assert https(proxy, host="b.localhost")[0] == 421
    for name in ("app.example", "localhost.example"):
        with pytest.raises(ssl.SSLError):
            https(proxy, name=name, host=name)
    assert https(proxy, name="none.localhost", host="none.localhost")[0] == 404


def test_certificates_come_from_files(proxy: Proxy, torpord: Torpord) -> None:
    torpord.attach(Guest(echo), torpord.group(["www.apps.example"], services=SERVICES))
    assert https(proxy)[0] == 404
    certs = proxy.data / "certs"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=own", "-addext", "subjectAltName=DNS:*.apps.example",
         "-keyout", certs / "_.apps.example.key", "-out", certs / "_.apps.example.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    (certs / "broken.example.crt").write_text("no certificate")
    with connect(proxy.addresses["proxy-tls"], context(proxy)) as before:
        proxy.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while True:
            trusting = ssl.create_default_context(cafile=str(certs / "_.apps.example.crt"))
            try:
                with connect(proxy.addresses["proxy-tls"], trusting, "www.apps.example"):
                    break
            except ssl.SSLError:
                assert time.monotonic() < deadline
        before.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert b" 404 " in before.recv(1 << 16), "an open connection goes on"
    assert "broken.example" in proxy.logged()


def test_http2(proxy: Proxy, torpord: Torpord) -> None:
    """By curl, many requests at once over one connection."""
    guest = Guest(echo)
    torpord.attach(guest, torpord.group([HOST], services=SERVICES))
    https(proxy)
    host, port = proxy.addresses["proxy-tls"]
    words = ["curl", "--silent", "--http2", "--parallel", "--cacert", "local-ca.crt"]
    words += ["--resolve", f"{HOST}:{port}:{host}", "--write-out", "%{http_version} %{http_code}\n"]
    words += ["--data", "body", f"https://{HOST}:{port}/[1-50]"]
    done = subprocess.run(
        words, cwd=proxy.data / "certs", check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.count("2 200\n") == 50
    assert len(set(re.findall(r"POST /(\d+) HTTP/1.1", done.stdout))) == 50
    assert done.stdout.count(f"\nhost: {HOST}:{port}\n") == 50


def test_a_service_that_redirects(proxy: Proxy, torpord: Torpord) -> None:
    torpord.attach(Guest(echo), torpord.group([HOST], services=SERVICES))
    got = get(proxy.address, HOST, "/a?b=c")
    assert (got.status, got.fields["location"]) == (308, f"https://{HOST}/a?b=c")
    # Where clients see another port than the proxy's own.
    torpord.ask("hello", server=str(uuid.uuid4()), suffix="localhost", public_ports={"443": 9443})
    got = get(proxy.address, HOST, "/a?b=c")
    assert (got.status, got.fields["location"]) == (308, f"https://{HOST}:9443/a?b=c")


def test_a_port_that_is_left_to_the_proxy(proxy: Proxy, torpord: Torpord) -> None:
    torpord.attach(Guest(echo), torpord.group([HOST], services=SERVICES))
    names = {"server": str(uuid.uuid4()), "suffix": "localhost"}
    welcome = torpord.ask("hello", **names, public_ports={"80": 81, "443": 0})
    tls = proxy.addresses["proxy-tls"][1]
    assert welcome["public_ports"] == {"80": 81, "443": tls}
    got = get(proxy.address, HOST, "/")
    assert got.fields["location"] == f"https://{HOST}:{tls}/"


def listening(torpord: Torpord) -> int:
    """A service port that is free on this host."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        try:
            torpord.ask("listen", port=port)
        except Refusal:
            continue
        return port


def greet(connection: Connection) -> None:
    """Speaks first."""
    connection.send(b"hello\n")
    while data := connection.recv():
        connection.send(data.upper())


def test_other_ports_end_tls_or_pass_it_through(
    proxy: Proxy, torpord: Torpord, tmp_path: Path
) -> None:
    assert https(proxy)[0] == 404
    port = listening(torpord)
    ended = [{"port": port, "destination_port": 1, "handlers": ["tls"]}]
    torpord.attach(Guest(greet), torpord.group([HOST], services=ended))
    with connect(("127.0.0.1", port), context(proxy)) as tls:
        assert tls.recv(100) == b"hello\n"
        tls.sendall(b"abc")
        assert tls.recv(100) == b"ABC"
    # The guest has its own certificate: what it is sent is what the client has sent.
    (tmp_path / "certs").mkdir(exist_ok=True)
    passed = [{"port": port, "destination_port": 1, "handlers": []}]
    hello = b""
    read = threading.Event()

    def note(connection: Connection) -> None:
        nonlocal hello
        hello = connection.recv(at_least=50)
        read.set()

    torpord.attach(Guest(note), torpord.group(["own.localhost"], services=passed))
    with socket.create_connection(("127.0.0.1", port)) as client:
        outgoing = ssl.MemoryBIO()
        tls_object = context(proxy).wrap_bio(ssl.MemoryBIO(), outgoing, False, "own.localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls_object.do_handshake()
        sent = outgoing.read()
        # In pieces: a ClientHello need not come at once.
        client.sendall(sent[:7])
        time.sleep(0.05)
        client.sendall(sent[7:])
        assert read.wait(30)
    assert sent.startswith(hello[:50])


def test_who_is_not_served_is_logged_once_with_the_time(proxy: Proxy, torpord: Torpord) -> None:
    port = listening(torpord)
    with pytest.raises(ssl.SSLError), connect(("127.0.0.1", port), context(proxy), "no.localhost"):
        pass
    text = rf"no\.localhost on port {port}: no service has this name"
    logged = rf"^\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ torpor-proxy: {text}$"
    assert len(re.findall(logged, proxy.logged(), re.MULTILINE)) == 1, proxy.logged()


def test_a_port_that_one_group_has_alone(proxy: Proxy, torpord: Torpord) -> None:
    """Clients name nobody, and the server may speak first; a connection attempt wakes."""
    port = listening(torpord)
    services = [{"port": port, "destination_port": 6379, "handlers": []}]
    torpord.ask("listen", port=port, alone=True)
    guest = Guest(greet)

    def wake(fields: dict[str, Any]) -> dict[str, Any]:
        assert fields == {"host": f":{port}", "port": port}
        group = torpord.group(["app.localhost", f":{port}"], services=services)
        instance = torpord.attach(guest, group)
        return {"group": group, "instance": instance, "generation": guest.generation}

    def nobody(_: dict[str, Any]) -> dict[str, Any]:
        raise Refusal("unknown")

    torpord.on["wake"] = nobody
    with socket.create_connection(("127.0.0.1", port)) as client:
        assert client.recv(100) == b"", "nobody has it"
    torpord.tell("forget", hosts=[f":{port}"])
    torpord.on["wake"] = wake
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert client.recv(100) == b"hello\n"
            client.sendall(b"\x16abc")
            assert client.recv(100) == b"\x16ABC"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b""
    assert torpord.count("wake") == 2
    # No name that a client can give leads there.
    assert get(proxy.address, f":{port}", "/").status == 400
    # It is not its alone any more: what has no name is plain HTTP there.
    torpord.ask("listen", port=port, alone=False)
    torpord.on["wake"] = nobody
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
        b"\x16" + os.urandom(2000),
        b"\x16",
        b"\x00" * 100,
    ],
)
def test_what_is_no_hello_is_closed(proxy: Proxy, torpord: Torpord, data: bytes) -> None:
    torpord.attach(Guest(echo), torpord.group([HOST], services=SERVICES))
    for address in (proxy.addresses["proxy-tls"], ("127.0.0.1", listening(torpord))):
        with Client(address) as client:
            try:
                client.send(data)
                client.socket.shutdown(socket.SHUT_WR)
                while client.socket.recv(1 << 16):
                    pass
            except (BrokenPipeError, ConnectionResetError, OSError):
                pass
    assert https(proxy)[0] == 200


def test_a_server_name_that_is_none(proxy: Proxy, torpord: Torpord) -> None:
    torpord.attach(Guest(echo), torpord.group([HOST], services=SERVICES))
    port = listening(torpord)
    trusting = context(proxy)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        trusting.wrap_socket(socket.create_connection(("127.0.0.1", port), 30))
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        connect(("127.0.0.1", port), trusting, "none.localhost")


def frames2(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


@pytest.mark.parametrize("flood", ["rapid-reset", "continuation", "settings", "ping"])
def test_floods_of_http2_end(proxy: Proxy, torpord: Torpord, flood: str) -> None:
    """The connection is ended, or its frames cost nothing; others are served meanwhile."""
    torpord.attach(Guest(echo), torpord.group([HOST], services=SERVICES))
    https(proxy)
    # :method GET, :scheme https, :path /, :authority as a literal.
    head = b"\x82\x87\x84\x41" + bytes([len(HOST)]) + HOST.encode()
    with connect(proxy.addresses["proxy-tls"], context(proxy, "h2")) as tls:
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames2(4, 0, 0))
        ended = False
        try:
            for n in range(2000):
                stream = 2 * n + 1
                tls.sendall({
                    "rapid-reset": frames2(1, 5, stream, head)
                    + frames2(3, 0, stream, b"\0\0\0\x08"),
                    "continuation": frames2(1, 0, 1, head) if n == 0
                    else frames2(9, 0, 1, b"\x00\x01x" + bytes([127]) + b"\x00" + b"y" * 127),
                    "settings": frames2(4, 0, 0) * 10,
                    "ping": frames2(6, 0, 0, b"12345678") * 10,
                }[flood])  # fmt: skip
        except OSError:
            ended = True
        if flood == "continuation":
            tls.settimeout(30)
            try:
                while tls.recv(1 << 16):
                    pass
            except OSError:
                pass
            ended = True
    assert https(proxy)[0] == 200
    assert ended or flood != "continuation"
    assert torpord.ask("stats")["links"][0]["in_flight"] == 0


# Limits -------------------------------------------------------------------------------------------


def held(release: threading.Event) -> Any:
    def program(connection: Connection) -> None:
        while read_request(connection) is not None:
            assert release.wait(30)
            answer(connection, b"done")

    return program


def test_above_the_soft_limit_another_instance_is_woken(proxy: Proxy, torpord: Torpord) -> None:
    release = threading.Event()
    group = torpord.group([HOST], soft_limit=2, hard_limit=3)
    first = torpord.attach(Guest(held(release)), group)
    more: list[str] = []

    def wake(fields: dict[str, Any]) -> dict[str, Any]:
        assert fields["not"][0] == first
        if len(fields["not"]) == 2:
            raise Refusal("stopped", "no more instances")
        more.append(torpord.attach(Guest(held(release)), group))
        return {"group": group, "instance": more[-1], "generation": 1}

    torpord.on["wake"] = wake
    clients = [Client(proxy.address) for _ in range(8)]

    def in_flight() -> dict[str, int]:
        return {link["instance"]: link["in_flight"] for link in torpord.ask("stats")["links"]}

    for n, client in enumerate(clients):
        client.send(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        while sum(in_flight().values()) < min(n + 1, 6):
            time.sleep(0.005)
    assert in_flight() == {first: 3, more[0]: 3}
    assert torpord.count("wake") == 2, "that there are no more is remembered"
    release.set()
    for client in clients:
        assert client.answer().body == b"done", "above the hard limit requests wait"
        client.socket.close()


# Telling ------------------------------------------------------------------------------------------


def test_requests_are_logged_and_counted(proxy: Proxy, torpord: Torpord) -> None:
    plain = [{"port": 80, "destination_port": 8080}]
    instance = torpord.attach(Guest(echo), torpord.group([HOST], services=plain))
    got = get(proxy.address, HOST, "/path?secret", "X-Request-Id: mine-1")
    assert got.fields["x-request-id"] == "mine-1"
    assert b"x-request-id: mine-1" in got.body
    made = get(proxy.address, HOST, "/", "X-Request-Id: has spaces").fields["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", made)
    assert get(proxy.address, "none.localhost").status == 404
    log = proxy.data / "access.log"
    deadline = time.monotonic() + 30
    while len(log.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    one, two, three = (json.loads(line) for line in log.read_text().splitlines())
    assert one.items() >= {
        "id": "mine-1", "client": "127.0.0.1", "method": "GET", "host": HOST, "path": "/path",
        "status": 200, "bytes": len(got.body), "instance": instance,
    }.items()  # fmt: skip
    assert (two["id"], three["status"], "unknown" in three["reason"]) == (made, 404, True)
    text = get(proxy.addresses["proxy-metrics"], "localhost", "/metrics").body.decode()
    for line in (
        'torpor_proxy_requests_total{code="2xx"} 2',
        'torpor_proxy_requests_total{code="4xx"} 1',
        "torpor_proxy_instances 1",
        "torpor_proxy_torpord_up 1",
        "torpor_proxy_request_seconds_count 3",
    ):
        assert line in text.splitlines()
    assert get(proxy.addresses["proxy-metrics"], "localhost", "/other").status == 404

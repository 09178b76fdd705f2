"""The outside: published ports, a program's own connections, names, and unchanged servers."""

import errno
import hashlib
import os
import re
import shutil
import socket
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from tests.harness import TORPOR, run_command, vm_run
from tests.rootfs.build import root_image

pytestmark = pytest.mark.kvm

WAIT_S = 90.0
LOCAL = "127.0.0.1"
Result = TypeVar("Result")
GATEWAY = "192.0.2.1"
"""The guest's name for this machine's own loopback address."""


@contextmanager
def vm_process_with_port(
    root: str,
    guest_port: int,
    *argv: str,
    options: tuple[str, ...] = (),
    kind: str = "tcp",
    on: str = LOCAL,
) -> Iterator[tuple[tuple[str, int], subprocess.Popen[bytes]]]:
    """A microVM with a port published on a free one of ours: the address of that, its broker."""
    command: list[str | Path] = [TORPOR, "vm", "run", "-p", f"{on}:0:{guest_port}/{kind}"]
    command += [*options, root_image(root), *argv]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline().decode()
            said = re.fullmatch(rf"torpor-vmm: port {guest_port} is {re.escape(on)}:(\d+)\n", line)
            assert said, line
            drain = threading.Thread(target=process.stderr.read, daemon=True)
            drain.start()
            yield (on.strip("[]"), int(said[1])), process
        finally:
            process.kill()


@contextmanager
def vm_with_port(
    root: str,
    guest_port: int,
    *argv: str,
    options: tuple[str, ...] = (),
    kind: str = "tcp",
    on: str = LOCAL,
) -> Iterator[tuple[str, int]]:
    """As `vm_process_with_port`; the address."""
    running = vm_process_with_port(root, guest_port, *argv, options=options, kind=kind, on=on)
    with running as (address, _):
        yield address


def greeted(address: tuple[str, int]) -> socket.socket:
    """A connection on which the server has said "up"."""
    connection = socket.create_connection(address, timeout=WAIT_S)
    try:
        if connection.recv(2) != b"up":
            raise ConnectionResetError("closed without a word")
    except OSError:
        connection.close()
        raise
    return connection


def until_ready(attempt: Callable[[], Result]) -> Result:
    """What `attempt` gives once the server in the guest listens: it is refused before."""
    deadline = threading.Event()
    timer = threading.Timer(WAIT_S, deadline.set)
    timer.start()
    try:
        while True:
            try:
                return attempt()
            except (ConnectionError, TimeoutError):
                if deadline.wait(0.05):
                    raise
    finally:
        timer.cancel()


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count and (piece := connection.recv(count - len(received))):
        received += piece
    return bytes(received)


def exchange(address: tuple[str, int], request: bytes, half_close: bool = True) -> bytes:
    with socket.create_connection(address, timeout=WAIT_S) as connection:
        connection.sendall(request)
        if half_close:
            try:
                connection.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # reset already: recv(2) says so
                    raise
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        if not answer:
            raise ConnectionResetError("closed without an answer")
        return answer


PYTHON_ECHO = """
import socket
listener = socket.create_server(("0.0.0.0", 7))
while True:
    connection, peer = listener.accept()
    first = connection.recv(1 << 16)
    connection.sendall(f"{peer[0]} ".encode())
    while first:
        connection.sendall(first)
        first = connection.recv(1 << 16)
    connection.close()
"""


def test_published_port_both_ways_with_half_close() -> None:
    body = os.urandom(3 << 20)
    with vm_with_port("python", 7, "python3", "-c", PYTHON_ECHO) as address:
        assert until_ready(lambda: exchange(address, b"hello")) == f"{GATEWAY} ".encode() + b"hello"
        assert exchange(address, body) == f"{GATEWAY} ".encode() + body


def test_nobody_listens_and_loopback_listeners_are_not_reached() -> None:
    script = "nc -l -p 8 127.0.0.1 & sleep 60"
    with vm_with_port("busybox", 8, "sh", "-c", script) as address:
        for _ in range(5):
            with pytest.raises(ConnectionError):
                exchange(address, b"x")


def test_port_that_is_taken() -> None:
    with socket.create_server((LOCAL, 0)) as taken:
        port = taken.getsockname()[1]
        result = vm_run("busybox", "true", options=("-p", f"{LOCAL}:{port}:80"))
    assert result.status == 125
    assert f"port {port} of the host is taken".encode() in result.stderr


def test_a_stalled_reader_stalls_the_writer() -> None:
    """The guest reads nothing: what the client can send is bounded, and arrives whole later."""
    script = """
    import hashlib, socket
    listener = socket.create_server(("0.0.0.0", 9))
    connection, _ = listener.accept()
    connection.sendall(b"up")
    control, _ = listener.accept()
    control.recv(1)
    digest, count = hashlib.sha256(), 0
    while piece := connection.recv(1 << 16):
        digest.update(piece)
        count += len(piece)
    connection.sendall(f"{count} {digest.hexdigest()}".encode())
    """
    argv = ("python3", "-c", textwrap.dedent(script))
    with vm_with_port("python", 9, *argv) as address:
        client = until_ready(lambda: greeted(address))
        client.settimeout(2)
        digest, sent, block = hashlib.sha256(), 0, os.urandom(1 << 16)
        stalled = False
        while not stalled and sent < 256 << 20:
            try:
                count = client.send(block)
            except TimeoutError:
                stalled = True
            else:
                digest.update(block[:count])
                sent += count
        assert stalled
        assert sent < 64 << 20
        with socket.create_connection(address, timeout=WAIT_S) as control:
            control.sendall(b"x")
            client.settimeout(WAIT_S)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := client.recv(1000):
                answer += piece
        assert answer.decode() == f"{sent} {digest.hexdigest()}"
        client.close()


@contextmanager
def echo_server(address: str = LOCAL) -> Iterator[int]:
    """An echo on a loopback address of this machine, TCP and UDP on one port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as listener,
        socket.socket(family, socket.SOCK_DGRAM) as datagrams,
    ):
        port = listener.getsockname()[1]
        datagrams.bind((address, port))

        def serve(connection: socket.socket) -> None:
            with connection:
                while piece := connection.recv(1 << 16):
                    connection.sendall(piece)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        def answer() -> None:
            while True:
                try:
                    datagram, peer = datagrams.recvfrom(1 << 16)
                    datagrams.sendto(b"echo " + datagram, peer)
                except OSError:
                    return

        for work in (accept, answer):
            threading.Thread(target=work, daemon=True).start()
        yield port
        listener.shutdown(socket.SHUT_RDWR)


def test_connections_of_the_program() -> None:
    with echo_server() as port, socket.socket() as unused:
        unused.bind((LOCAL, 0))
        closed = unused.getsockname()[1]
        result = vm_run(
            "python", "python3", "/srv/outside.py", str(port), str(closed),
            options=("--egress-allow", f"{LOCAL}/32"),
        )  # fmt: skip
    assert result.stdout.decode().splitlines() == [
        "tcp 1000000 bytes from 192.0.2.2",
        "refused: ECONNREFUSED",
        "unfinished: EINPROGRESS, poll 4, error 0, then 0, then EISCONN",
        "unfinished and refused: EINPROGRESS, poll 28, error ECONNREFUSED",
        "link-local: EACCES",
        "this network: EHOSTUNREACH",
        "loopback, not here: ECONNREFUSED",
        "udp b'echo hello' from 192.0.2.1",
        "connected udp 20005",
        "udp refused: ECONNREFUSED",
        "udp link-local: EACCES",
        "name 127.0.0.1",
        "no such name",
    ], str(result)


SIX = """
import errno, socket, sys
gateway, port = sys.argv[1], int(sys.argv[2])
def attempt(kind, address):
    with socket.socket(socket.AF_INET6, kind) as s:
        s.settimeout(60)
        try:
            s.connect((address, port))
            s.sendall(b"hello")
            name = s.getsockname()[0]
            if kind == socket.SOCK_STREAM:
                s.shutdown(socket.SHUT_WR)
            return s.recv(100), name, s.getpeername()[0]
        except OSError as error:
            return errno.errorcode[error.errno]
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    print(attempt(kind, gateway))
print(attempt(socket.SOCK_STREAM, "::ffff:192.0.2.1"), attempt(socket.SOCK_STREAM, "fe80::1"))
print(attempt(socket.SOCK_STREAM, "fd54:6f72:706f::9"), attempt(socket.SOCK_STREAM, "ff02::1"))
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
    s.settimeout(60)
    try:
        s.sendto(b"far", (gateway, port))
        print(s.recvfrom(100)[0])
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
SIX_GATEWAY = "fd54:6f72:706f::1"
SIX_OWN = "fd54:6f72:706f::2"


def test_connections_by_ipv6() -> None:
    """To ::1 of this machine, which the gateway stands for: with permission, and without."""
    with echo_server("::1") as port:
        argv = ("python3", "-c", SIX, SIX_GATEWAY, str(port))
        allowed = vm_run("python", *argv, options=("--egress-allow", "::1"))
        refused = vm_run("python", *argv)
    assert allowed.stdout.decode().splitlines() == [
        f"(b'hello', '{SIX_OWN}', '{SIX_GATEWAY}')",
        f"(b'echo hello', '{SIX_OWN}', '{SIX_GATEWAY}')",
        "EACCES EACCES",
        "EHOSTUNREACH EACCES",
        "b'echo far'",
    ], str(allowed)
    assert refused.stdout.decode().splitlines() == [
        "EACCES",
        "EACCES",
        "EACCES EACCES",
        "EHOSTUNREACH EACCES",
        "EACCES",
    ], str(refused)


@pytest.mark.parametrize(
    ("family", "peer"), [("AF_INET6", SIX_GATEWAY), ("AF_INET", GATEWAY)], ids=["to v6", "to v4"]
)
def test_port_published_on_ipv6(family: str, peer: str) -> None:
    """A client of ::1 comes from the gateway, to a server that knows only IPv4 from that one's."""
    script = f"""
    import socket
    wildcard = "::" if "{family}" == "AF_INET6" else "0.0.0.0"
    listener = socket.create_server((wildcard, 7), family=socket.{family})
    while True:
        connection, peer = listener.accept()
        connection.sendall(peer[0].encode() + b" " + connection.recv(100))
        connection.close()
    """
    argv = ("python3", "-c", textwrap.dedent(script))
    with vm_with_port("python", 7, *argv, on="[::1]") as address:
        assert until_ready(lambda: exchange(address, b"six")) == f"{peer} six".encode()


def test_the_host_is_not_reached_by_default() -> None:
    with echo_server() as port:
        script = f"nc -w 5 {GATEWAY} {port} </dev/null; echo $?"
        result = vm_run("busybox", "sh", "-c", script)
    assert result.stdout == b"1\n"
    assert b"Permission denied" in result.stderr


def test_published_udp_port() -> None:
    script = """
    import socket
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("0.0.0.0", 5))
    while True:
        data, peer = s.recvfrom(1 << 16)
        s.sendto(peer[0].encode() + b" " + data, peer)
    """
    argv = ("python3", "-c", textwrap.dedent(script))
    with (
        vm_with_port("python", 5, *argv, kind="udp") as address,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.connect(address)
        client.settimeout(0.2)

        def ask() -> bytes:
            client.send(b"hi")
            return client.recv(100)

        assert until_ready(ask) == f"{GATEWAY} hi".encode()


def test_vsock_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "vsock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}_1234")
        listener.listen()
        script = """
        import socket
        out = socket.socket(socket.AF_VSOCK)
        listener = socket.socket(socket.AF_VSOCK)
        listener.bind((socket.VMADDR_CID_ANY, 99))
        listener.listen()
        out.connect((2, 1234))
        out.sendall(b"listening")
        connection, peer = listener.accept()
        connection.sendall(f"{peer[0]} ".encode() + connection.recv(100))
        connection.close()
        out.recv(1)
        """
        argv: list[str | Path] = ["python3", "-c", textwrap.dedent(script)]
        command = [TORPOR, "vm", "run", "--vsock", path, root_image("python"), *argv]
        with subprocess.Popen(command) as process:
            listener.settimeout(WAIT_S)
            connection, _ = listener.accept()
            with connection, socket.socket(socket.AF_UNIX) as client:
                connection.settimeout(WAIT_S)
                assert connection.recv(100) == b"listening"
                client.settimeout(WAIT_S)
                client.connect(str(path))
                client.sendall(b"CONNECT 99\n")
                answer = client.recv(100)
                assert answer == b"OK 99\n"
                client.sendall(b"ping")
                answer = b""
                while piece := client.recv(100):
                    answer += piece
                assert answer == b"2 ping"
            assert process.wait(WAIT_S) == 0
    assert not path.exists()


def test_interfaces() -> None:
    result = vm_run("busybox", "sh", "-c", "ip -o addr; ip route; ifconfig eth0")
    text = result.stdout.decode()
    for part in (
        "inet 127.0.0.1/8",
        "inet 192.0.2.2/24",
        "default via 192.0.2.1",
        "02:00:00:00:00:02",
    ):
        assert part in text, str(result)


NGINX = """
daemon off; user root; worker_processes 2; pid /tmp/nginx.pid; error_log stderr;
events {{ worker_connections 256; }}
http {{ access_log off; client_body_temp_path /tmp/a; proxy_temp_path /tmp/b;
  fastcgi_temp_path /tmp/c; uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e;
  sendfile on; tcp_nopush on; keepalive_requests 1000000; types {{ text/html html; }}
  server {{ listen {port}; root /tmp/www; }} }}
"""


def nginx_argv(port: int = 80) -> tuple[str, ...]:
    script = (
        "mkdir -p /tmp/www /var/log/nginx /var/lib/nginx; cat /etc/passwd >/tmp/www/small.html; "
        "dd if=/dev/zero of=/tmp/www/large bs=1M count=8 2>/dev/null; "
        f"echo '{' '.join(NGINX.format(port=port).split())}' >/tmp/nginx.conf; "
        "exec nginx -c /tmp/nginx.conf"
    )
    return ("sh", "-c", script)


def get(address: tuple[str, int], path: str) -> bytes:
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    return exchange(address, request, half_close=False)  # nginx gives up at a half-close


def test_nginx_under_load() -> None:
    wrk = shutil.which("wrk")
    assert wrk, "wrk is missing: scripts/system-packages test"
    with vm_with_port("nginx", 80, *nginx_argv()) as address:
        assert b"200 OK" in until_ready(lambda: get(address, "/small.html"))
        assert len(get(address, "/large")) > 8 << 20
        url = f"http://{address[0]}:{address[1]}/small.html"
        loaded = run_command([wrk, "-t1", "-c32", "-d5", "--timeout", "30s", url])
        text = loaded.stdout.decode()
        assert loaded.status == 0, text
        assert "Non-2xx" not in text, text
        assert "Socket errors" not in text, text
        assert b"200 OK" in get(address, "/small.html")


def test_redis_under_load() -> None:
    benchmark = shutil.which("redis-benchmark")
    assert benchmark, "redis-benchmark is missing: scripts/system-packages test"
    argv = ("redis-server", "--save", "", "--protected-mode", "no", "--dir", "/tmp")
    with vm_with_port("redis", 6379, *argv) as address:
        assert until_ready(lambda: exchange(address, b"PING\r\nQUIT\r\n")).startswith(b"+PONG")
        loaded = run_command([
            benchmark, "-h", address[0], "-p", str(address[1]), "-t", "set,get", "-n", "20000",
            "-q",
        ])  # fmt: skip
        assert loaded.status == 0, str(loaded)
        assert loaded.stdout.count(b"requests per second") == 2, str(loaded)


def test_python_http_server() -> None:
    argv = ("python3", "-m", "http.server", "80", "--directory", "/etc")
    with vm_with_port("python", 80, *argv) as address:
        first = until_ready(lambda: get(address, "/passwd"))
        assert b"200 OK" in first
        assert b"root:x:0:0" in first
        for _ in range(50):
            assert get(address, "/passwd").split(b"\r\n\r\n")[1] == first.split(b"\r\n\r\n")[1]


def test_many_sockets_and_listen_floods() -> None:
    result = vm_run("python", "python3", "/srv/flood.py", timeout_s=300)
    assert result.status == 0, str(result)
    assert result.stdout.decode().splitlines()[-1] == "still well", str(result)


def test_a_gibibyte_each_way() -> None:
    """A fixed pattern out and in; 256 MiB here, the whole GiB in `make bench-guest`."""
    script = """
    import socket, sys
    listener = socket.create_server(("0.0.0.0", 9))
    while True:
        connection, _ = listener.accept()
        head = connection.recv(1, socket.MSG_WAITALL)
        if head == b"i":
            count, buffer = 0, bytearray(1 << 18)
            while n := connection.recv_into(buffer):
                count += n
            connection.sendall(str(count).encode())
        elif head == b"o":
            block = bytes(range(256)) * 4096
            for _ in range(256):
                connection.sendall(block)
        else:
            connection.sendall(b"up")
        connection.close()
    """
    argv = ("python3", "-c", textwrap.dedent(script))
    block = bytes(range(256)) * 4096
    with vm_with_port("python", 9, *argv) as address:
        assert until_ready(lambda: exchange(address, b"?")) == b"up"
        with socket.create_connection(address, timeout=WAIT_S) as connection:
            connection.sendall(b"i")
            for _ in range(256):
                connection.sendall(block)
            connection.shutdown(socket.SHUT_WR)
            assert receive_exactly(connection, 9) == str(256 << 20).encode()
        with socket.create_connection(address, timeout=WAIT_S) as connection:
            connection.sendall(b"o")
            for _ in range(256):
                assert receive_exactly(connection, len(block)) == block
            assert connection.recv(1) == b""

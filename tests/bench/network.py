"""The network part of `make bench-guest`: through the broker and natively, in one run."""

import os
import re
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.bench.native import enter_mount_namespace, native_root
from tests.e2e.test_network import LOCAL, get, nginx_argv, until_ready, vm_with_port
from tests.harness import DEFAULT_ENVIRONMENT, REPOSITORY
from torpor.bench import Bar, Report, WrongAnswerError, refuse_debug_build

GIB = 1 << 30
BLOCK_BYTES = 1 << 20
ROUNDS = 3
LOAD_S = 5

STREAMER = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
block = bytes(1 << 20)
while True:
    connection, _ = listener.accept()
    head = connection.recv(1)
    if head == b"i":
        count, buffer = 0, bytearray(1 << 18)
        while n := connection.recv_into(buffer):
            count += n
        connection.sendall(str(count).encode())
    elif head == b"o":
        for _ in range(1024):
            connection.sendall(block)
    else:
        connection.sendall(b"up")
    connection.close()
"""
ROUND_TRIPS = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
a = socket.create_connection(listener.getsockname())
b, _ = listener.accept()
a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range(20):
    began = time.perf_counter_ns()
    for _ in range(500):
        a.send(b"x"); b.recv(1); b.send(b"y"); a.recv(1)
    print((time.perf_counter_ns() - began) / 500)
"""


@contextmanager
def native_server(root: str, port: int, *argv: str) -> Iterator[tuple[str, int]]:
    command = [*native_root(root), *argv]
    with subprocess.Popen(
        command, env=DEFAULT_ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield LOCAL, port
        finally:
            process.terminate()


def free_port() -> int:
    with socket.create_server((LOCAL, 0)) as probe:
        return int(probe.getsockname()[1])


def wrk(address: tuple[str, int], connections: int) -> tuple[float, float]:
    """Requests a second, and the median latency in ms."""
    url = f"http://{address[0]}:{address[1]}/small.html"
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{LOAD_S}", "--latency", url],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    median = re.search(r"50%\s+([\d.]+)(us|ms|s)", done.stdout)
    if not rate or not median or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise WrongAnswerError(f"wrk: {done.stdout}")
    return float(rate[1]), float(median[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[median[2]]


def nginx(report: Report) -> None:
    port = free_port()
    with (
        vm_with_port("nginx", 80, *nginx_argv()) as guest,
        native_server("nginx", port, *nginx_argv(port)) as native,
    ):
        for address in (guest, native):
            until_ready(lambda address=address: get(address, "/small.html"))  # type: ignore[misc]
        ours, theirs = wrk(guest, 1), wrk(native, 1)
        report.value("nginx-1-connection-latency", ours[1], "ms")
        report.value("nginx-1-connection-latency-native", theirs[1], "ms")
        report.value("nginx-added-latency", ours[1] - theirs[1], "ms", bar=Bar(0.2))
        for name, address in (("", guest), ("-native", native)):
            rate = wrk(address, 32)[0]
            report.value(f"nginx-32-connections{name}", rate, "requests/s", metric="rate")


def stream_out(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"o")
        buffer, count = bytearray(BLOCK_BYTES), 0
        while n := connection.recv_into(buffer):
            count += n
    if count != GIB:
        raise WrongAnswerError(f"{count} bytes came out")


def stream_in(address: tuple[str, int]) -> None:
    block = bytes(BLOCK_BYTES)
    with socket.create_connection(address) as connection:
        connection.sendall(b"i")
        for _ in range(GIB // BLOCK_BYTES):
            connection.sendall(block)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(100)
    if answer != str(GIB).encode():
        raise WrongAnswerError(f"{answer!r} bytes went in")


def seconds_per_gib(work: Callable[[tuple[str, int]], None], address: tuple[str, int]) -> float:
    began = time.perf_counter()
    work(address)
    return time.perf_counter() - began


def streaming(report: Report) -> None:
    def ready(address: tuple[str, int]) -> bytes:
        with socket.create_connection(address) as connection:
            connection.sendall(b"?")
            answer = connection.recv(2)
        if not answer:
            raise ConnectionResetError("not yet")
        return answer

    port = free_port()
    script = textwrap.dedent(STREAMER)
    with (
        vm_with_port("python", 9, "python3", "-c", script, "9") as guest,
        native_server("python", port, "python3", "-c", script, str(port)) as native,
    ):
        for address in (guest, native):
            until_ready(lambda address=address: ready(address))  # type: ignore[misc]
        for case, work in (("out", stream_out), ("in", stream_in)):
            for name, address in (("", guest), ("-native", native)):
                times = [seconds_per_gib(work, address) for _ in range(ROUNDS)]
                # 300 MB/s are 3.58 s for a GiB.
                bar = Bar(GIB / 300e6) if name == "" else None
                report.samples(f"gib-{case}{name}", times, "s", bar=bar)


def loopback(report: Report) -> None:
    for name, prefix in (("-native", native_root("python")), ("", None)):
        if prefix is None:
            from tests.harness import vm_run

            done = vm_run("python", "python3", "-c", ROUND_TRIPS).stdout
        else:
            command = [*prefix, "python3", "-c", ROUND_TRIPS]
            done = subprocess.run(
                command, check=True, capture_output=True, env=DEFAULT_ENVIRONMENT
            ).stdout
        times = [float(line) / 1e3 for line in done.split()]
        report.samples(f"loopback-round-trip{name}", times, "us")


def main() -> int:
    refuse_debug_build()
    enter_mount_namespace("tests.bench.network")
    os.chdir(REPOSITORY)
    report = Report("network")
    for part in (nginx, streaming, loopback):
        try:
            part(report)
        except (WrongAnswerError, OSError, subprocess.CalledProcessError) as error:
            report.wrong_answer(f"{part.__name__}: {error}")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

"""`make bench-proxy`: what the proxy adds to a running instance, and what idle clients cost it.

The same nginx runs in two microVMs: one behind `torpor vm run -p`, which is the way without the
proxy, and one behind the proxy.
"""

import asyncio
import contextlib
import os
import re
import resource
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

from tests.bench.network import LOAD_S
from tests.e2e.test_network import get, nginx_argv, until_ready, vm_with_port
from tests.harness import DEFAULT_ENVIRONMENT, REPOSITORY
from tests.proxy.daemon import Proxy, Torpord
from tests.rootfs.build import root_image
from tests.snapshot.vms import OWNER, vm_process
from torpor.bench import Bar, Report, WrongAnswerError, refuse_debug_build
from torpor.vmprocess import Boot

HOST = "app.localhost"
IDLE_CLIENTS = 10_000
ROUNDS = 5
REQUESTS = 2_000


@contextlib.asynccontextmanager
async def behind_proxy(directory: Path, torpord: Torpord) -> AsyncIterator[None]:
    """A microVM whose nginx answers for HOST."""
    services = [{"port": 80, "destination_port": 80, "handlers": ["http"]}]
    group = torpord.group([HOST], services=services)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    image = os.open(root_image("nginx"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        async with vm_process(directory) as process:
            boot = Boot(
                owner=OWNER,
                image="00" * 32,
                memory_limit_bytes=256 << 20,
                argv=nginx_argv(),
                envp=tuple(f"{k}={v}" for k, v in DEFAULT_ENVIRONMENT.items()),
                host_name="bench",
                uuid=secrets.token_hex(16),
            )
            await process.boot(boot, image=image, console=theirs.fileno())
            torpord.ask(
                "attach",
                [ours.fileno()],
                instance=str(UUID(boot.uuid)),
                name="bench",
                generation=0,
                group=group,
                resumed=False,
                scale_to_zero={"policy": "off", "cooldown_ms": 0},
                egress={},
            )
            ours.close()
            theirs.close()
            await process.run()
            yield
    finally:
        os.close(image)


def latencies_ms(address: tuple[str, int], host: str) -> list[float]:
    """One client, one connection, one request after the other."""
    request = f"GET /small.html HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    times = []
    with socket.create_connection(address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(REQUESTS):
            began = time.perf_counter_ns()
            client.sendall(request)
            data = client.recv(1 << 16)
            head, _, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if not head.startswith(b"HTTP/1.1 200") or not length:
                raise WrongAnswerError(repr(data))
            while len(body) < int(length[1]):
                body += client.recv(1 << 16)
            times.append((time.perf_counter_ns() - began) / 1e6)
    return times


def rate(address: tuple[str, int], host: str) -> float:
    url = f"http://{address[0]}:{address[1]}/small.html"
    words = ["wrk", "-t1", "-c64", f"-d{LOAD_S}", "-H", f"Host: {host}", url]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if not found or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise WrongAnswerError(f"wrk: {done.stdout}")
    return float(found[1])


def private_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"Private_\w+:\s+(\d+) kB", text)) * 1024 / 1e6


def processor_us(pid: int) -> float:
    """Processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1e6


def idle_clients(report: Report, proxy: Proxy) -> None:
    """Each has had an answer, and keeps its connection."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = private_mb(proxy.process.pid)
    clients = []
    request = f"GET /small.html HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    for _ in range(IDLE_CLIENTS):
        client = socket.create_connection(proxy.address)
        client.sendall(request)
        if not client.recv(1 << 16).startswith(b"HTTP/1.1 200"):
            raise WrongAnswerError("an idle client's first request")
        clients.append(client)
    memory = private_mb(proxy.process.pid)
    report.value("10000-idle-connections", memory, "MB", metric="memory", bar=Bar(200))
    report.value("no-connections", before, "MB", metric="memory")
    for client in clients:
        client.close()


async def measure(report: Report, directory: Path, proxy: Proxy, torpord: Torpord) -> None:
    with vm_with_port("nginx", 80, *nginx_argv()) as direct:
        async with behind_proxy(directory, torpord):
            until_ready(lambda: get(direct, "/small.html"))
            until_ready(lambda: latencies_ms(proxy.address, HOST))
            ours: list[float] = []
            theirs: list[float] = []
            added = []
            # In turns: what else the machine does falls on both.
            for _ in range(ROUNDS):
                one, other = latencies_ms(proxy.address, HOST), latencies_ms(direct, HOST)
                added.append(statistics.median(one) - statistics.median(other))
                ours += one
                theirs += other
            report.samples("1-connection", ours, "ms")
            report.samples("1-connection-without-proxy", theirs, "ms")
            report.samples("added-at-1-connection", added, "ms", bar=Bar(0.15))
            bar = Bar(15_000, at_least=True)
            spent = processor_us(proxy.process.pid)
            rates = [rate(proxy.address, HOST) for _ in range(3)]
            spent = processor_us(proxy.process.pid) - spent
            # What it can do at most, whatever the guest does.
            report.value("processor-time", spent / (sum(rates) * LOAD_S), "us/request")
            report.samples("64-connections", rates, "requests/s", metric="rate", bar=bar)
            without = [rate(direct, HOST) for _ in range(3)]
            report.samples("64-connections-without-proxy", without, "requests/s", metric="rate")
            idle_clients(report, proxy)


def main() -> int:
    refuse_debug_build()
    os.chdir(REPOSITORY)
    report = Report("proxy")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        proxy = Proxy(directory)
        torpord = Torpord(directory)
        try:
            asyncio.run(measure(report, directory, proxy, torpord))
        except (WrongAnswerError, OSError, subprocess.CalledProcessError) as error:
            report.wrong_answer(str(error))
        finally:
            proxy.close()
            torpord.close()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

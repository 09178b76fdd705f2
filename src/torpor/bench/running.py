"""What the proxy costs: an instance that never sleeps, beside the same program natively."""

import re
import resource
import shutil
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from torpor.bench import meters, native
from torpor.bench.apps import App
from torpor.bench.http import Client
from torpor.bench.population import raise_unless_made
from torpor.bench.report import Bar, Report, WrongAnswerError, percentile
from torpor.bench.server import Api, Shape, Target
from torpor.errors import TorporError

IDLE_CONNECTIONS = 10_000
THROUGHPUT_S = 5
CONNECTIONS = 64
REQUESTS = 2000
WARM_UP = 200
NAME = "running"


@dataclass(frozen=True, slots=True)
class Running:
    """Measures of one server's proxy."""

    report: Report
    target: Target

    async def measure(self, app: App, shape: Shape) -> None:
        """All of them, of an instance that is gone afterwards: others are waited for to sleep."""
        api = Api(self.target)
        try:
            (made,) = await api.create([replace(shape, policy="off").spec(NAME)])
            raise_unless_made(made)
            await self._measured(app)
            await api.delete([made.uuid])
        finally:
            api.close()

    async def _measured(self, app: App) -> None:
        host = f"{NAME}.{self.target.suffix}"
        address, _, port = self.target.proxy.rpartition(":")
        behind = await _one_connection(address, int(port), host)
        with native.scratch() as scratch, native.mounted(app.image, scratch) as root:
            command, log = root.command(), scratch / "log"
            with native.started(command, app.port, log, root.environment()):
                directly = await _one_connection("127.0.0.1", app.port, "localhost")
                rate = _throughput(f"127.0.0.1:{app.port}", "localhost")
        report, many = self.report, f"{CONNECTIONS} connections"
        report.samples("running natively", directly, "ms")
        report.samples("running, behind the proxy", behind, "ms")
        added = _median(behind) - _median(directly)
        report.value("added to the native answer, p50", added, "ms", bar=Bar(0.15))
        report.value(f"natively, {many}", rate, "1/s")
        rate = _throughput(self.target.proxy, host)
        report.value(f"behind the proxy, {many}", rate, "1/s", bar=Bar(15_000, at_least=True))
        self._idle_connections(address, int(port), host)

    def _idle_connections(self, address: str, port: int, host: str) -> None:
        """Memory of the proxy with connections that were used once."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        with ExitStack() as held:
            for _ in range(IDLE_CONNECTIONS):
                connection = held.enter_context(socket.create_connection((address, port), 30))
                connection.sendall(request)
                if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                    raise WrongAnswerError("the proxy refuses one of many connections")
            used_bytes = meters.rss_bytes(self.target.parts().proxy)
        case = f"memory of the proxy, {IDLE_CONNECTIONS:,} idle connections"
        self.report.value(case, used_bytes / 1e6, "MB", bar=Bar(200))


def _median(values: Sequence[float]) -> float:
    return percentile(sorted(values), 50)


async def _one_connection(address: str, port: int, host: str) -> list[float]:
    """Milliseconds of requests that follow one another, the first ones left out."""
    client = Client(address, port, limit=1)
    request = client.encode("GET", "/", host=host)
    times = []
    for _ in range(WARM_UP + REQUESTS):
        answer = await client.send(request)
        if answer.status != 200:
            raise WrongAnswerError(f"{host} answered {answer.status}: {answer.body[:200]!r}")
        times.append(answer.took_s * 1e3)
    client.close()
    return times[WARM_UP:]


def _throughput(address: str, host: str) -> float:
    """Requests a second over many connections. Raises TorporError without wrk."""
    if shutil.which("wrk") is None:
        raise TorporError("wrk is missing: install the package wrk")
    words = ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{THROUGHPUT_S}"]
    words += ["-H", f"Host: {host}", f"http://{address}/"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if found is None or "Non-2xx" in said or "Socket errors" in said:
        raise WrongAnswerError(f"wrk at {host}: {said}")
    return float(found[1])

"""`make demo`: a program is deployed, sleeps, and is woken by requests; its last line is the wake.

Everything is as a person would do it: `torpor up`, `torpor deploy examples/bun-counter`, requests.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import apsw

from tests.harness import REPOSITORY
from tests.kvm import kvm_problem
from tests.server import Server
from torpor.bench import Report
from torpor.bench.report import percentile

DATA = REPOSITORY / "build" / "demo"
NAME = "counter"
COOLDOWN_MS = 50
WAKES = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wakes", type=int, default=WAKES)
    wakes: int = parser.parse_args().wakes
    problem = kvm_problem()
    if problem is not None:
        print(f"demo: {problem}: this machine cannot run microVMs", file=sys.stderr)
        return 1
    DATA.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Server(DATA) as server:
        print(f"server up: proxy on 127.0.0.1:{server.proxy_port}")
        if NAME in server.instances():
            server.torpor("instance", "rm", "--yes", NAME)
        print("torpor deploy examples/bun-counter (the first time its base image is made) ...")
        began_s = time.monotonic()
        directory = str(REPOSITORY / "examples" / "bun-counter")
        host = server.deploy("-n", NAME, "--cooldown", f"{COOLDOWN_MS}ms", directory, progress=True)
        print(
            f"deployed in {time.monotonic() - began_s:.1f} s: http://{host}:{server.proxy_port}\n"
        )
        show_sleep(server)
        first = count(server, host)
        print(f"\nfirst request: count {first}. Now {wakes} more, each after it fell asleep again:")
        times_ms = [wake(server, host, first + number + 1) for number in range(wakes)]
        print(f"count is {first + wakes}: it went on through {wakes} sleeps\n")
        server.wait_for(NAME, "standby")
        show_sleep(server)
        print()
        report = Report("wake")
        report.samples("running", running(server, host, first + wakes), "ms")
        report.samples(f"bun-counter-cooldown-{COOLDOWN_MS}ms", times_ms, "ms")
        ordered = sorted(times_ms)
        figures = " ".join(f"p{p} {percentile(ordered, p):.2f} ms" for p in (50, 90, 99))
        print(f"{wakes} wakes, from connect to the whole answer: {figures}\n")
        return report.finish()


def count(server: Server, host: str) -> int:
    """One request: the count that it answers."""
    status, body = server.get(host)
    if status != 200:
        raise SystemExit(f"demo: {status} {body.decode(errors='replace')}")
    return int(json.loads(body)["count"])


def wake(server: Server, host: str, expected: int) -> float:
    """A request for a sleeping VM: milliseconds from connect to the whole answer."""
    server.wait_for(NAME, "standby")
    began_s = time.perf_counter()
    found = count(server, host)
    took_ms = (time.perf_counter() - began_s) * 1e3
    if found != expected:
        raise SystemExit(f"demo: count {found} instead of {expected}")
    return took_ms


def running(server: Server, host: str, expected: int) -> list[float]:
    """The same requests one right after the other: the VM does not sleep in between."""
    times_ms = []
    for number in range(21):
        began_s = time.perf_counter()
        found = count(server, host)
        times_ms.append((time.perf_counter() - began_s) * 1e3)
        if found != expected + number + 1:
            raise SystemExit(f"demo: count {found} instead of {expected + number + 1}")
    return times_ms[1:]


def show_sleep(server: Server) -> None:
    """What there is of an instance that sleeps."""
    server.wait_for(NAME, "standby")
    running = [vm["name"] for vm in server.api("/torpor/v1/load")["running"]]
    if NAME in running:
        raise SystemExit(f"demo: {NAME} sleeps, and has a process")
    connection = apsw.Connection(str(server.data / "torpor.db"), flags=apsw.SQLITE_OPEN_READONLY)
    size, generation = connection.execute(
        "SELECT s.size_bytes, s.generation FROM snapshots s JOIN instances i "
        "ON i.id = s.instance_id WHERE i.name = ?", (NAME,)
    ).fetchone() or (0, 0)  # fmt: skip
    connection.close()
    print(
        f"{NAME} sleeps: no process is it, no memory is its own, {size / 1000:.1f} KB on disk "
        f"(generation {generation})"
    )
    print(f"  VM processes that rest for whoever is woken next: {resting(server.data)}")


def resting(data: Path) -> int:
    """VM processes of this server."""
    return len(list((data / "run" / "vm").glob("*.sock")))


if __name__ == "__main__":
    sys.exit(main())

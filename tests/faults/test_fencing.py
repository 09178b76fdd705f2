"""torpord killed while VMs run and requests go on, two torpords at once: no VM is lost or doubled.

Half of the VMs stay awake, half sleep after every request. Each counts its requests in memory, and
its counts have to go up by one with every answer: a VM that runs twice, or comes back from an older
state, shows. FENCING_VMS and FENCING_ROUNDS make it larger; TORPOR_TEST_SEED repeats a choice.
"""

import contextlib
import http.client
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.guest_http import ANSWERING
from tests.images.standins import add_root
from tests.server import Server
from torpor.images.store import ImageStore
from torpor.locks import TORPORD, holder

pytestmark = pytest.mark.kvm

VMS = int(os.environ.get("FENCING_VMS", "12"))
ROUNDS = int(os.environ.get("FENCING_ROUNDS", "5"))
SEED = int(os.environ.get("TORPOR_TEST_SEED", str(random.randrange(1 << 31))))
CLIENTS = 3
PROGRAM = (
    ANSWERING
    + """
n = 0
class Handler(Answering):
    def do_GET(self):
        global n
        n += 1
        body = str(n).encode()
        self.answer(body)
HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
)


@dataclass
class Counter:
    """An instance, and what is known of its count."""

    name: str
    host: str
    last: int = 0
    doubt: int = 0
    """Requests since then of which is not known whether they were counted."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, server: Server) -> str | None:
        """One request; what is wrong with its answer."""
        with self.lock:
            try:
                status, body = server.get(self.host)
            except (OSError, http.client.HTTPException) as error:
                return f"{self.name}: {error!r}"
            if status != 200:
                self.doubt += 1
                return None
            count = int(body)
            low, high = self.last + 1, self.last + 1 + self.doubt
            if not low <= count <= high:
                return f"{self.name}: count {count} is not {low} to {high}"
            self.last, self.doubt = count, 0
            return None


class Load:
    """Requests to random counters until it is stopped."""

    def __init__(self, server: Server, counters: list[Counter]) -> None:
        self.wrong: list[str] = []
        self.answered = 0
        self._server = server
        self._counters = counters
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(SEED + number,)) for number in range(CLIENTS)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        choice = random.Random(seed)
        while not self._stop.is_set():
            problem = choice.choice(self._counters).ask(self._server)
            if problem is not None:
                self.wrong.append(problem)
            self.answered += 1


def make(server: Server, count: int) -> list[Counter]:
    """Instances of one configuration, all started."""

    def spec(number: int) -> dict[str, object]:
        cooldown_ms = 50 if number % 2 else 600_000
        return {
            "name": f"n{number}",
            "image": "counter",
            "memory_mb": 128,
            "service_group": {
                "services": [{"port": 80, "destination_port": 8080}],
                "domains": [{"name": f"n{number}"}],
            },
            "scale_to_zero": {"policy": "on", "stateful": True, "cooldown_time_ms": cooldown_ms},
        }

    specs = [spec(number) for number in range(count)]
    made = server.api("/v1/instances", specs, "POST")["instances"]
    assert [one["status"] for one in made] == ["success"] * count, made
    server.api("/torpor/v1/prepare", [{"name": "n0"}], "POST")
    for number in range(count):
        server.api("/v1/instances/start", [{"name": f"n{number}"}], "PUT")
        if number == 0:
            server.wait_for("n0", "running")
    return [Counter(f"n{number}", f"n{number}.localhost") for number in range(count)]


def another_torpord(server: Server) -> "subprocess.Popen[bytes]":
    """A second one on the same data directory."""
    command = [sys.executable, "-m", "torpor.torpord", "--data", str(server.data)]
    command += ["--listen", f"127.0.0.1:{server.api_port}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end(rival: "subprocess.Popen[bytes]") -> None:
    rival.terminate()
    rival.wait(30)


def test_torpord_is_killed_while_vms_run(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "python", "counter", ("python3", "-c", PROGRAM), ("8080",))
    choice = random.Random(SEED)
    rivals: list[subprocess.Popen[bytes]] = []
    with Server(data) as server, contextlib.ExitStack() as cleaning:
        counters = make(server, VMS)
        with Load(server, counters) as load:
            for number in range(ROUNDS):
                time.sleep(choice.uniform(0.1, 1.0))
                first = server.torpord()
                os.kill(first, signal.SIGKILL)
                rivals.append(another_torpord(server))
                cleaning.callback(end, rivals[-1])
                server.wait_for_torpord(other_than=first)
                assert load.wrong == [], f"seed {SEED}, round {number + 1}"
        assert load.wrong == [], f"seed {SEED}"
        assert load.answered > ROUNDS
        for rival in rivals:
            # One of them may be the torpord that there is now.
            end(rival)
        server.wait_for_torpord(other_than=0)
        problems = [counter.ask(server) for counter in counters]
        assert problems == [None] * VMS, f"seed {SEED}"
        for counter in counters:
            assert counter.doubt == 0, f"seed {SEED}: {counter.name} does not answer"


def test_a_vm_process_cannot_pass_for_another(tmp_path: Path) -> None:
    """One says that it is an instance which another is: that one goes on, the liar is killed."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "python", "counter", ("python3", "-c", PROGRAM), ("8080",))
    with Server(data) as server:
        (counter,) = make(server, 1)
        assert counter.ask(server) is None
        uuid = server.api("/v1/instances?name=n0&details=true")["instances"][0]["uuid"]
        path = data / "run" / "vm" / f"{'1f' * 8}.sock"
        command = [sys.executable, "-m", "tests.faults.impostor", str(path), uuid, "0"]
        liar = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert liar.stdout is not None
        try:
            assert liar.stdout.readline() == b"listening\n"
            first = server.torpord()
            os.kill(first, signal.SIGKILL)
            server.wait_for_torpord(other_than=first)
            assert liar.wait(60) == -signal.SIGKILL
        finally:
            liar.kill()
            liar.wait()
            liar.stdout.close()
        assert (counter.ask(server), counter.last) == (None, 2)


def test_an_end_that_no_torpord_heard_of(tmp_path: Path) -> None:
    """A program ends between two torpords: the next one knows how, and takes it for no loss."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    program = PROGRAM.replace("        self.answer(body)\n", "        os._exit(7)\n")
    root = ("python3", "-c", f"import os{program}")
    add_root(ImageStore(data), "python", "ends", root, ("8080",))
    with Server(data) as server:
        spec = {
            "name": "ends",
            "image": "ends",
            "memory_mb": 128,
            "autostart": True,
            "service_group": {
                "services": [{"port": 80, "destination_port": 8080}],
                "domains": [{"name": "ends"}],
            },
        }
        server.api("/v1/instances", [spec], "POST")
        server.wait_for("ends", "running")
        supervisor = int((data / "run" / "supervisor.pid").read_text())
        os.kill(supervisor, signal.SIGSTOP)
        try:
            first = server.torpord()
            os.kill(first, signal.SIGKILL)
            while holder(data / TORPORD) is not None:
                time.sleep(0.01)
            time.sleep(0.1)  # it lets go of all else after its lock
            assert server.get("ends.localhost")[0] == 502
        finally:
            os.kill(supervisor, signal.SIGCONT)
        server.wait_for_torpord(other_than=first)
        server.wait_for("ends", "stopped")
        (found,) = server.api("/v1/instances?name=ends&details=true")["instances"]
        assert (found["stop_reason"], found["exit_code"]) == (3, 7)

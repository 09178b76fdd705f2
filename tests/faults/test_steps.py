"""torpord, proxy or VM process are killed at each step of a wake and of a standby.

The counter in the guest shows what became of it: nothing is lost but what a killed VM process had
not put down, nothing is counted twice, and the instance answers again.
"""

import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.faults.stepping import STANDBY, WAKE
from tests.faults.test_fencing import PROGRAM
from tests.harness import REPOSITORY
from tests.images.standins import add_root
from tests.server import TIMEOUT_S, Server, free_port
from torpor.binaries import find_binary
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

NAME = "counter"
HOST = f"{NAME}.localhost"


class Part:
    """A program that is started again at once when it dies."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._over = False
        self.process = self._start()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log, cwd=REPOSITORY)

    def _watch(self) -> None:
        while True:
            self.process.wait()
            if self._over:
                return
            self.process = self._start()

    def end(self) -> None:
        self._over = True
        self.process.terminate()
        self._thread.join(TIMEOUT_S)


class Stepped(Server):
    """A server whose torpord is tests.faults.stepping."""

    torpord_part: Part
    proxy_part: Part

    def __enter__(self) -> Self:
        self.proxy_port, self.api_port = free_port(), free_port()
        where = ["--data", str(self.data)]
        proxy = [str(find_binary("torpor-proxy")), *where, "--http", f"127.0.0.1:{self.proxy_port}"]
        stepping = [sys.executable, "-m", "tests.faults.stepping", *where]
        self.proxy_part = Part(proxy, self.data / "proxy.log")
        listen = ["--listen", f"127.0.0.1:{self.api_port}"]
        self.torpord_part = Part([*stepping, *listen], self.data / "torpord.log")
        self.wait_for_torpord(other_than=0)
        return self

    def __exit__(self, *_: object) -> None:
        self.torpor("down", "--vms-only")
        self.torpord_part.end()
        self.proxy_part.end()

    @property
    def step(self) -> Path:
        return self.data / "step"

    def arm(self, step: str, victim: str) -> None:
        pid = {"torpord": 0, "VM process": -1, "proxy": self.proxy_part.process.pid}[victim]
        temporary = self.step.with_suffix(".new")
        temporary.write_text(f"{step}\n{pid}")
        temporary.replace(self.step)

    def count(self) -> tuple[int, int]:
        """The counter's answer, and how many requests had none before it."""
        failures, ends_s = 0, time.monotonic() + TIMEOUT_S
        while True:
            try:
                status, body = self.get(HOST)
            except (OSError, http.client.HTTPException):
                status, body = 0, b""
            if status == 200:
                return int(body), failures
            failures += 1
            assert time.monotonic() < ends_s, (status, body)
            time.sleep(0.05)

    def sleeps(self) -> None:
        """Until it does, though torpord may be starting."""
        ends_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                if self.state(NAME) == "standby":
                    return
            except (OSError, ValueError, KeyError, http.client.HTTPException):
                pass
            assert time.monotonic() < ends_s
            time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stepped]:
    data = tmp_path_factory.mktemp("steps") / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "python", "counter", ("python3", "-c", PROGRAM), ("8080",))
    with Stepped(data) as server:
        spec = {
            "name": NAME,
            "image": "counter",
            "memory_mb": 128,
            "service_group": {
                "services": [{"port": 80, "destination_port": 8080}],
                "domains": [{"name": NAME}],
            },
            "scale_to_zero": {"policy": "on", "stateful": True, "cooldown_time_ms": 50},
        }
        (made,) = server.api("/v1/instances", [spec], "POST")["instances"]
        assert made["status"] == "success", made
        server.api("/v1/instances/start", [{"name": NAME}], "PUT")
        server.count()
        yield server


VICTIMS = ("torpord", "proxy", "VM process")
WITHOUT_VM = ("wake asked for", "state read")
DURABLE = ("committed", "VM released", "standby answered")
CASES = [
    (step, victim)
    for step in (*WAKE, *STANDBY)
    for victim in VICTIMS
    if victim != "VM process" or step not in WITHOUT_VM
]


@pytest.mark.parametrize(("step", "victim"), CASES)
def test_a_kill_at_each_step(server: Stepped, step: str, victim: str) -> None:
    server.sleeps()
    committed, _ = server.count()
    server.sleeps()
    server.arm(step, victim)
    last, doubt = server.count()
    assert committed < last <= committed + 1 + doubt
    ends_s = time.monotonic() + TIMEOUT_S
    while server.step.exists():
        assert time.monotonic() < ends_s, "the step is not reached"
        time.sleep(0.01)
    after, doubt = server.count()
    # What a VM process that is killed has not put down is gone; nothing else ever is.
    least = committed if victim == "VM process" and step not in DURABLE else last
    assert least < after <= last + 1 + doubt
    server.sleeps()

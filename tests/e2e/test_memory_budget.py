"""VMs together use no more memory than they may: idle ones go to standby for others."""

import contextlib
import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest_http import ANSWERING
from tests.images.standins import add_root
from tests.server import TIMEOUT_S, Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

BUDGET_MIB = 160
GROWN_MIB = 48
PROGRAM = (
    ANSWERING
    + """
import json, threading
from urllib.parse import parse_qsl, urlsplit

held = []
released = threading.Event()

class Handler(Answering):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/grow":
            mib = int(dict(parse_qsl(url.query))["mib"])
            held.append(b"memory of one's own" * (mib * 55189))
        elif url.path == "/wait":
            released.wait()
        elif url.path == "/release":
            released.set()
        body = json.dumps(sum(map(len, held)) >> 20).encode()
        self.answer(body)

ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever(poll_interval=None)
"""
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("budget") / "data"
    data.mkdir(mode=0o700)
    (data / "config.toml").write_text(f"[vms]\nmemory_mb = {BUDGET_MIB}\n")
    add_root(ImageStore(data), "python", "program", ("python3", "-c", PROGRAM), ("8080",))
    with Server(data) as server:
        yield server


def make(server: Server, name: str, policy: str = "on") -> None:
    """An instance behind NAME.localhost that does not sleep for silence while a test lasts."""
    spec = {
        "name": name,
        "image": "program",
        "memory_mb": 512,
        "autostart": True,
        "service_group": {
            "services": [{"port": 80, "destination_port": 8080}],
            "domains": [{"name": name}],
        },
        "scale_to_zero": {"policy": policy, "stateful": True, "cooldown_time_ms": 3_600_000},
    }
    (made,) = server.api("/v1/instances", [spec], "POST")["instances"]
    assert made["status"] == "success", made


def ask(server: Server, name: str, path: str = "/") -> int:
    """How many MiB the instance says that it holds."""
    status, body = server.get(f"{name}.localhost", path)
    assert status == 200, body
    return int(json.loads(body))


def memory_mib(server: Server) -> int:
    """What running VMs have for themselves."""
    pages = 0
    for vm in server.api("/torpor/v1/load")["running"]:
        with contextlib.suppress(FileNotFoundError):  # it has just been put down
            resident, shared = Path(f"/proc/{vm['pid']}/statm").read_text().split()[1:3]
            pages += int(resident) - int(shared)
    return (pages * os.sysconf("SC_PAGESIZE")) >> 20


def wake(server: Server, name: str) -> int:
    """Suspends an instance that runs, and asks it: the status."""
    server.api("/v1/instances/suspend", [{"name": name}], "PUT")
    connection = http.client.HTTPConnection("127.0.0.1", server.proxy_port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"Host": f"{name}.localhost"})
        response = connection.getresponse()
        assert response.status == 200 or response.getheader("Retry-After") is not None
        return response.status


def delete(server: Server, name: str) -> None:
    server.api("/v1/instances", [{"name": name}], "DELETE")


def test_idle_ones_make_room(server: Server) -> None:
    make(server, "busy")
    make(server, "kept", "off")
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(ask(server, "busy", "/wait")))
    waiting.start()
    names = [f"idle-{n}" for n in range(6)]
    for name in names:
        make(server, name)
        assert ask(server, name, f"/grow?mib={GROWN_MIB}") == GROWN_MIB
    ends_s = time.monotonic() + TIMEOUT_S
    while memory_mib(server) > BUDGET_MIB:
        assert time.monotonic() < ends_s
        time.sleep(0.1)
    states = [server.state(name) for name in names]
    # Which (tests/proxy/test_sleep.py) is not looked at: one that is busy just then goes on.
    assert states.count("standby") >= 3
    assert (server.state("busy"), server.state("kept")) == ("running", "running")
    # Each is woken in another's place, and none has lost anything.
    for name in (*names, *names):
        assert ask(server, name) == GROWN_MIB
    assert ask(server, "busy", "/release") == 0
    waiting.join(TIMEOUT_S)
    assert answers == [0]
    for name in ("busy", "kept", *names):
        delete(server, name)


def test_without_room_a_wake_waits_and_is_told_to_come_again(server: Server) -> None:
    make(server, "small")
    assert ask(server, "small") == 0
    make(server, "hog", "off")
    assert ask(server, "hog", f"/grow?mib={BUDGET_MIB + 32}") == BUDGET_MIB + 32
    ends_s = time.monotonic() + TIMEOUT_S
    # Memory is measured now and then: until it was, there may be a VM process for a wake.
    while (status := wake(server, "small")) == 200:
        assert time.monotonic() < ends_s
    assert status == 503
    assert server.state("hog") == "running"
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(ask(server, "small")))
    waiting.start()
    delete(server, "hog")
    waiting.join(TIMEOUT_S)
    assert answers == [0], "a wake that waits gets the room that another has left"

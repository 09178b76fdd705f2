"""What a guest has a say in: that it stays awake, that it hears before it sleeps, its timers."""

import errno
import json
import os
import signal
import time
import urllib.parse
from collections.abc import Iterator

import pytest

from tests.guest_http import ANSWERING
from tests.images.standins import add_root
from tests.server import Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

COUNTER = "/uk/libukp/scale_to_zero_disable"
AWAKE_S = 1.5
"""How long is looked on while a VM of a far shorter cool-down is to stay awake."""
PROGRAM = (
    ANSWERING
    + f"""
import errno, json, socket, threading, time
from urllib.parse import parse_qsl, urlsplit

told = []
hold_when_told = False

def write(text):
    try:
        with open("{COUNTER}", "w") as file:
            file.write(text)
    except OSError as error:
        return error.errno
    return 0

def hear():
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, 138))
    listener.listen()
    while True:
        with listener.accept()[0] as caller:
            word = b""
            while piece := caller.recv(100):
                word += piece
        told.append(word.decode())
        if hold_when_told:
            write("+")

def ring(seconds):
    time.sleep(seconds)
    print("the timer has rung", flush=True)

class Handler(Answering):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global hold_when_told
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        if url.path == "/write":
            answer = write(query["text"])
        elif url.path == "/read":
            answer = open("{COUNTER}").read()
        elif url.path == "/told":
            answer = told
        elif url.path == "/hold-when-told":
            hold_when_told = True
            answer = None
        elif url.path == "/ring":
            threading.Thread(target=ring, args=[float(query["s"])], daemon=True).start()
            answer = None
        body = json.dumps(answer).encode()
        self.answer(body)

threading.Thread(target=hear, daemon=True).start()
# Without a timer of its own, which the default of half a second is.
ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever(poll_interval=None)
"""
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("guest") / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "python", "program", ("python3", "-c", PROGRAM), ("8080",))
    with Server(data) as server:
        yield server


def make(server: Server, name: str, **scale_to_zero: object) -> None:
    """An instance behind NAME.localhost that runs."""
    spec = {
        "name": name,
        "image": "program",
        "memory_mb": 128,
        "autostart": True,
        "service_group": {
            "services": [{"port": 80, "destination_port": 8080}],
            "domains": [{"name": name}],
        },
        "scale_to_zero": {
            "policy": "on",
            "stateful": True,
            "cooldown_time_ms": 100,
            **scale_to_zero,
        },
    }
    (made,) = server.api("/v1/instances", [spec], "POST")["instances"]
    assert made["status"] == "success", made


def ask(server: Server, name: str, path: str) -> object:
    status, body = server.get(f"{name}.localhost", path)
    assert status == 200, body
    return json.loads(body)


def write(server: Server, name: str, text: str) -> object:
    return ask(server, name, f"/write?text={urllib.parse.quote_plus(text)}")


def stays_awake(server: Server, name: str) -> None:
    ends_s = time.monotonic() + AWAKE_S
    while time.monotonic() < ends_s:
        assert server.state(name) == "running"
        time.sleep(0.05)


@pytest.mark.parametrize("stateful", [True, False])
def test_a_program_holds_its_vm_awake(server: Server, stateful: bool) -> None:
    name = f"held-{stateful}".lower()
    make(server, name, stateful=stateful)
    assert ask(server, name, "/read") == "=0"
    server.wait_for(name, "standby")
    assert [write(server, name, text) for text in ("+", "=5", "-4")] == [0, 0, 0]
    stays_awake(server, name)
    assert ask(server, name, "/read") == "=1"
    assert write(server, name, "-") == 0
    server.wait_for(name, "standby")


def test_a_hold_survives_a_standby_that_was_asked_for(server: Server) -> None:
    make(server, "kept")
    assert write(server, "kept", "=2") == 0
    server.torpor("instance", "suspend", "kept")
    assert server.state("kept") == "standby"
    assert ask(server, "kept", "/read") == "=2"
    stays_awake(server, "kept")
    first = server.proxy()
    # A new proxy hears of it as well.
    os.kill(first, signal.SIGKILL)
    ends_s = time.monotonic() + 120
    while True:
        try:
            assert ask(server, "kept", "/read") == "=2"
            break
        except OSError:
            assert time.monotonic() < ends_s
            time.sleep(0.05)
    stays_awake(server, "kept")
    assert write(server, "kept", "=0") == 0
    server.wait_for("kept", "standby")


def test_what_the_counter_refuses(server: Server) -> None:
    make(server, "strict")
    assert write(server, "strict", "-") == errno.ERANGE
    assert write(server, "strict", "=18446744073709551616") == errno.ERANGE
    for text in ("1", "=", "+x", "=-1"):
        assert write(server, "strict", text) == errno.EINVAL
    assert ask(server, "strict", "/read") == "=0"


@pytest.mark.parametrize("policy", ["on", "idle"])
def test_a_guest_is_told_before_it_sleeps(server: Server, policy: str) -> None:
    name = f"told-{policy}"
    make(server, name, policy=policy, cooldown_time_ms=400, notify_time_ms=200)
    for slept in range(3):
        told = ask(server, name, "/told")
        assert isinstance(told, list)
        assert set(told) <= {"scaletozero"}
        assert len(told) >= slept
        server.wait_for(name, "standby")
    # Told in time to stay awake.
    ask(server, name, "/hold-when-told")
    before = ask(server, name, "/told")
    assert isinstance(before, list)
    ends_s = time.monotonic() + 60
    while ask(server, name, "/read") == "=0":
        assert time.monotonic() < ends_s
        time.sleep(0.5)
    stays_awake(server, name)


def test_a_timer_wakes_its_vm_if_it_is_to(server: Server) -> None:
    make(server, "alarm", wake_on_timer=True)
    make(server, "deaf")
    for name in ("alarm", "deaf"):
        assert ask(server, name, "/ring?s=3") is None
        server.wait_for(name, "standby")
    ends_s = time.monotonic() + 60
    while "the timer has rung" not in server.torpor("instance", "logs", "alarm"):
        assert time.monotonic() < ends_s
        time.sleep(0.1)
    server.wait_for("alarm", "standby")
    assert server.state("deaf") == "standby"
    assert "the timer has rung" not in server.torpor("instance", "logs", "deaf")


def test_a_timer_wakes_after_a_restart_of_torpord(server: Server) -> None:
    make(server, "late", wake_on_timer=True)
    assert ask(server, "late", "/ring?s=4") is None
    server.wait_for("late", "standby")
    server.down()
    server.up()
    ends_s = time.monotonic() + 60
    while "the timer has rung" not in server.torpor("instance", "logs", "late"):
        assert time.monotonic() < ends_s
        time.sleep(0.1)

"""Stops of real VMs: what is in flight may end, and what is forced ends at once."""

import base64
import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.guest_http import ANSWERING
from tests.images.standins import add_root
from tests.server import TIMEOUT_S, Server, serving_spec
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

PROGRAM = (
    ANSWERING
    + """
import mmap, signal, sys
def ended(*_):
    print("goodbye", flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, ended)
class Handler(Answering):
    def do_PUT(self):
        memory = mmap.mmap(-1, 4 << 30)
        for page in range(0, len(memory), 4096):
            memory[page] = 1
    def do_POST(self):
        print("begun", flush=True)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(body)
ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("stops") / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "python", "echo", ("python3", "-c", PROGRAM), ("8080",))
    with Server(data) as server:
        yield server


def create(server: Server, name: str, *, stateful: bool = False) -> None:
    policy = {"policy": "on", "stateful": stateful, "cooldown_time_ms": 600_000}
    spec = serving_spec(name, "echo", policy)
    (made,) = server.api("/v1/instances", [spec], "POST")["instances"]
    assert made["status"] == "success", made
    server.wait_for(name, "running")


def log(server: Server, name: str) -> bytes:
    (found,) = server.api("/v1/instances/log", [{"name": name}])["instances"]
    return base64.b64decode(found["output"])


def one(server: Server, name: str) -> dict[str, Any]:
    (found,) = server.api(f"/v1/instances?name={name}&details=true")["instances"]
    return dict(found)


class Unfinished:
    """A request whose program waits for the rest of its body."""

    def __init__(self, server: Server, name: str) -> None:
        self.connection = socket.create_connection(("127.0.0.1", server.proxy_port), TIMEOUT_S)
        head = f"POST / HTTP/1.1\r\nHost: {name}.localhost\r\nContent-Length: 4\r\n\r\n"
        self.connection.sendall(head.encode() + b"ab")
        ends_s = time.monotonic() + TIMEOUT_S
        while b"begun" not in log(server, name):
            assert time.monotonic() < ends_s, "the program never got it"
            time.sleep(0.02)

    def finish(self) -> tuple[int, bytes]:
        """Sends the rest: status and body."""
        with self.connection, http.client.HTTPResponse(self.connection) as response:
            self.connection.sendall(b"cd")
            response.begin()
            return response.status, response.read()


def test_a_stop_lets_requests_in_flight_end(server: Server) -> None:
    create(server, "drained")
    request = Unfinished(server, "drained")
    stop = {"name": "drained", "drain_timeout_ms": -1}
    (stopping,) = server.api("/v1/instances/stop", [stop], "PUT")["instances"]
    assert (stopping["previous_state"], stopping["state"]) == ("running", "draining")
    assert server.get("drained.localhost")[0] == 503, "nothing new"
    assert server.state("drained") == "draining"
    assert request.finish() == (200, b"abcd")
    server.wait_for("drained", "stopped")
    assert (one(server, "drained")["exit_code"], one(server, "drained")["stop_reason"]) == (3, 15)
    assert log(server, "drained") == b"begun\ngoodbye\n"


def test_a_forced_stop_lets_nothing_end(server: Server) -> None:
    create(server, "forced")
    request = Unfinished(server, "forced")
    server.api("/v1/instances/stop", [{"name": "forced", "force": True}], "PUT")
    server.wait_for("forced", "stopped")
    assert one(server, "forced")["stop_reason"] == 28
    try:
        status, _ = request.finish()
    except (OSError, http.client.HTTPException):
        return
    assert status == 502


def test_a_drain_survives_torpord(server: Server) -> None:
    create(server, "survives")
    request = Unfinished(server, "survives")
    server.api("/v1/instances/stop", [{"name": "survives", "drain_timeout_ms": -1}], "PUT")
    killed = server.torpord()
    os.kill(killed, signal.SIGKILL)
    server.wait_for_torpord(other_than=killed)
    server.wait_for("survives", "stopped")
    request.connection.close()
    assert one(server, "survives")["stop_reason"] == 15


def test_down_puts_away_what_has_requests_in_flight(server: Server) -> None:
    create(server, "plain")
    create(server, "kept", stateful=True)
    requests = [Unfinished(server, name) for name in ("plain", "kept")]
    server.down()
    server.up()
    assert server.state("plain") == "standby"
    assert log(server, "plain").startswith(b"begun\ngoodbye\n"), "it was told to end"
    assert server.state("kept") == "standby"
    for request in requests:
        request.connection.close()


def test_an_end_for_want_of_memory_is_named(server: Server) -> None:
    create(server, "hungry")
    connection = http.client.HTTPConnection("127.0.0.1", server.proxy_port, timeout=TIMEOUT_S)
    connection.request("PUT", "/", headers={"Host": "hungry.localhost"})
    assert connection.getresponse().status == 502
    connection.close()
    server.wait_for("hungry", "stopped")
    ended = one(server, "hungry")
    assert (ended["exit_code"], ended["stop_reason"], ended["stop_code"]) == (137, 1, 0xC7F04)
    assert b"the VM's memory, 128 MiB, is used up" in log(server, "hungry")

"""What the API can do with instances, on real VMs: stops, branches, checkpoints, templates."""

import base64
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.images.standins import add_root
from tests.server import TIMEOUT_S, Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

PROGRAM = """
import signal, socket, sys, time
def ended(*_):
    print("goodbye", flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, ended)
print("hello", flush=True)
count = 0
listener = socket.create_server(("0.0.0.0", 8080))
while True:
    connection, _ = listener.accept()
    with connection:
        if b"\\r\\n\\r\\n" not in connection.recv(65536):
            continue
        count += 1
        body = str(count).encode()
        head = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n"
        connection.sendall(head % len(body) + body)
"""
SERVICE = {"services": [{"port": 80, "destination_port": 8080}]}
FOR_EVER = {"policy": "on", "stateful": True, "cooldown_time_ms": 600_000}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("lives") / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "python", "counter", ("python3", "-c", PROGRAM), ("8080",))
    with Server(data) as server:
        yield server


def create(server: Server, name: str, **spec: Any) -> str:
    """An instance, started; its host name."""
    given = {"name": name, "autostart": True, "scale_to_zero": FOR_EVER, **spec}
    if not {"branch_from", "checkpoint", "template"} & set(spec):
        given |= {"image": "counter", "memory_mb": 128}
    given["service_group"] = {**SERVICE, "domains": [{"name": name}]}
    (made,) = server.api("/v1/instances", [given], "POST")["instances"]
    assert made["status"] == "success", made
    server.wait_for(name, "running")
    return f"{name}.localhost"


def count(server: Server, host: str) -> int:
    status, body = server.get(host)
    assert status == 200, body
    return int(body)


def one(server: Server, name: str) -> dict[str, Any]:
    (found,) = server.api(f"/v1/instances?name={name}&details=true")["instances"]
    return dict(found)


@pytest.mark.parametrize(
    ("user", "env", "home"),
    [
        ("", {}, "/root"),
        ("app", {}, "/home/app"),
        ("1000", {}, "/home/app"),
        ("4321:7", {}, "/"),
        ("app", {"HOME": "/given"}, "/given"),
    ],
)
def test_home_is_that_of_the_user(
    server: Server, user: str, env: dict[str, str], home: str
) -> None:
    """As the image's /etc/passwd says, like container engines."""
    name = f"home-{len(server.instances())}"
    add_root(ImageStore(server.data), "busybox", name, ("sh", "-c", "echo $HOME"), user=user)
    spec = {"name": name, "image": name, "memory_mb": 128, "env": env, "autostart": True}
    (made,) = server.api("/v1/instances", [spec], "POST")["instances"]
    assert made["status"] == "success", made
    said = ""
    ends_s = time.monotonic() + TIMEOUT_S
    while not said and time.monotonic() < ends_s:
        (log,) = server.api("/v1/instances/log", [{"name": name}])["instances"]
        said = base64.b64decode(log["output"]).decode()
    assert said == f"{home}\n"


def test_a_stop_is_a_sigterm(server: Server) -> None:
    host = create(server, "stopped")
    assert count(server, host) == 1
    server.api("/v1/instances/stop", [{"name": "stopped"}], "PUT")
    server.wait_for("stopped", "stopped")
    ended = one(server, "stopped")
    assert (ended["exit_code"], ended["stop_reason"]) == (3, 15)
    (log,) = server.api("/v1/instances/log", [{"name": "stopped"}])["instances"]
    assert base64.b64decode(log["output"]) == b"hello\ngoodbye\n"
    assert server.get(host)[0] == 503
    server.api("/v1/instances/start", [{"name": "stopped"}], "PUT")
    server.wait_for("stopped", "running")
    assert count(server, host) == 1, "it began anew"


def test_a_forced_stop_is_at_once(server: Server) -> None:
    create(server, "forced")
    server.api("/v1/instances/stop", [{"name": "forced", "force": True}], "PUT")
    server.wait_for("forced", "stopped")
    assert one(server, "forced")["stop_reason"] == 28


def test_branches_and_checkpoints_go_on_from_where_they_were_made(server: Server) -> None:
    host = create(server, "trunk")
    assert [count(server, host) for _ in range(3)] == [1, 2, 3]
    saved = {"from": {"name": "trunk"}, "name": "three"}
    (made,) = server.api("/v1/instances/checkpoints", [saved], "POST")["instances"]
    assert made["status"] == "success", made
    assert count(server, host) == 4
    branch = create(server, "branch", branch_from={"name": "trunk"})
    assert count(server, branch) == 5
    loaded = create(server, "loaded", checkpoint={"name": "three"})
    assert count(server, loaded) == 4
    assert count(server, host) == 5, "the trunk went its own way"
    for name, expected in (("branch", 6), ("loaded", 5), ("trunk", 6)):
        server.api("/v1/instances/suspend", [{"name": name}], "PUT")
        server.wait_for(name, "standby")
        assert count(server, f"{name}.localhost") == expected


def test_clones_of_a_template_begin_where_it_was_made(server: Server) -> None:
    host = create(server, "seed")
    assert [count(server, host) for _ in range(2)] == [1, 2]
    (made,) = server.api("/v1/instances/templates", [{"name": "seed"}], "POST")["instances"]
    assert made["state"] == "template", made
    for name in ("clone-a", "clone-b"):
        clone = create(server, name, template={"name": "seed"})
        assert count(server, clone) == 3
        server.api("/v1/instances/suspend", [{"name": name}], "PUT")
        assert count(server, clone) == 4
    uuids = {one(server, name)["uuid"] for name in ("clone-a", "clone-b")}
    assert len(uuids) == 2


def test_without_state_every_wake_begins_anew(server: Server) -> None:
    stateless = {"policy": "on", "stateful": False, "cooldown_time_ms": 50}
    host = create(server, "fresh", scale_to_zero=stateless)
    for _ in range(3):
        assert count(server, host) == 1
        server.wait_for("fresh", "standby")


def test_a_killed_vm_process_falls_back_to_what_was_committed(server: Server) -> None:
    host = create(server, "fallen")
    assert count(server, host) == 1
    server.api("/v1/instances/suspend", [{"name": "fallen"}], "PUT")
    assert [count(server, host) for _ in range(2)] == [2, 3]
    uuid = one(server, "fallen")["uuid"]
    server.kill_vm(uuid)
    server.wait_for("fallen", "standby")
    assert one(server, "fallen")["stop_reason"] == 5
    assert count(server, host) == 2


def test_a_program_that_ends_is_stopped_and_deleted_if_that_was_asked(server: Server) -> None:
    spec = {
        "name": "short",
        "image": "counter",
        "args": ["python3", "-c", "print('once')"],
        "memory_mb": 128,
        "features": ["delete-on-stop"],
        "autostart": True,
    }
    (made,) = server.api("/v1/instances", [spec], "POST")["instances"]
    assert made["status"] == "success", made
    ends_s = time.monotonic() + 120
    while server.api("/v1/instances?name=short")["instances"][0]["status"] != "error":
        assert time.monotonic() < ends_s, "it is still there"
        time.sleep(0.05)

"""Wakes from a template that is not in torpord's memory: they do not wait until it is unpacked."""

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.test_wake_starts import PROGRAM
from tests.images.standins import add_root
from tests.server import TIMEOUT_S, Server, serving_spec
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

INSTANCES = 4


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("templates") / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "python", "counter", ("python3", "-c", PROGRAM), ("8080",))
    with Server(data) as server:
        yield server


def spec(name: str) -> dict[str, object]:
    policy = {"policy": "on", "stateful": True, "cooldown_time_ms": 1}
    return serving_spec(name, "counter", policy)


def unpacked(torpord: int) -> int:
    """How many templates a torpord has in memory."""
    found = 0
    for descriptor in Path(f"/proc/{torpord}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(descriptor.readlink()) == "/memfd:template (deleted)"
    return found


def test_first_wakes_after_a_restart(server: Server) -> None:
    """Alone, and then in several processes at once, each of which has its own."""
    names = [f"n{number}" for number in range(INSTANCES)]
    (made,) = server.api("/v1/instances", [spec(names[0])], "POST")["instances"]
    assert made["status"] == "success", made
    server.wait_for(names[0], "standby")
    made = server.api("/v1/instances", [spec(name) for name in names[1:]], "POST")["instances"]
    assert {one["status"] for one in made} == {"success"}

    def count(name: str) -> object:
        status, body = server.get(f"{name}.localhost")
        return json.loads(body) if status == 200 else (status, body)

    def wanted(count: int) -> list[object]:
        return [{"name": name, "count": count} for name in names]

    assert [count(name) for name in names] == wanted(1)
    with ThreadPoolExecutor(INSTANCES) as pool:
        for already, at_once in enumerate((False, True), start=1):
            for name in names:
                server.wait_for(name, "standby")
            server.down()
            server.up()
            assert unpacked(server.torpord()) == 0
            assert list((pool.map if at_once else map)(count, names)) == wanted(already + 1)
            ends_s = time.monotonic() + TIMEOUT_S
            while not unpacked(server.torpord()):
                assert time.monotonic() < ends_s, "the template is not unpacked for later wakes"
                time.sleep(0.01)
    for name in names:
        server.wait_for(name, "standby")
    assert [count(name) for name in names] == wanted(4)

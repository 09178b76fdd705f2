"""From `torpor deploy` to an answer: a request wakes its VM, silence puts it back."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import REPOSITORY
from tests.images.standins import add_bases
from tests.server import Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("wake")
    data = directory / "data"
    data.mkdir(mode=0o700)
    add_bases(ImageStore(data), directory, ["oven/bun:1"])
    with Server(data) as server:
        yield server


def count(answer: tuple[int, bytes]) -> int:
    status, body = answer
    assert status == 200, body
    return int(json.loads(body)["count"])


def test_a_counter_goes_on_after_its_sleep(server: Server) -> None:
    host = server.deploy("-n", "counter", str(REPOSITORY / "examples" / "bun-counter"))
    assert count(server.get(host)) == 1
    for expected in range(2, 6):
        server.wait_for("counter", "standby")
        assert count(server.get(host)) == expected
    assert count(server.get(f"{host}:8080", "/peek")) == 5
    server.wait_for("counter", "standby")
    assert count(server.get_tls(host)) == 6
    assert server.get("nobody.localhost")[0] == 404
    assert "bun-counter on" in server.torpor("instance", "logs", "counter")


def test_a_killed_torpord_loses_nothing(server: Server) -> None:
    options = ["-n", "kept", "--cooldown", "10m"]
    host = server.deploy(*options, str(REPOSITORY / "examples" / "bun-counter"))
    assert count(server.get(host)) == 1
    first = server.torpord()
    os.kill(first, signal.SIGKILL)
    # The VM serves on, with no torpord and with the next one.
    assert count(server.get(host)) == 2
    server.wait_for_torpord(other_than=first)
    assert server.state("kept") == "running"
    assert count(server.get(host)) == 3
    server.torpor("instance", "suspend", "kept")
    assert count(server.get(host)) == 4


def test_a_killed_proxy_loses_its_connections_and_no_vm(server: Server) -> None:
    options = ["-n", "linked", "--cooldown", "10m"]
    host = server.deploy(*options, str(REPOSITORY / "examples" / "bun-counter"))
    assert count(server.get(host)) == 1
    first = server.proxy()
    os.kill(first, signal.SIGKILL)
    # Until the next one listens, connections are refused.
    ends_s = time.monotonic() + 120
    while True:
        try:
            answer = server.get(host)
            break
        except OSError:
            assert time.monotonic() < ends_s, "no proxy listens"
            time.sleep(0.05)
    assert count(answer) == 2
    assert server.proxy() != first


def test_down_and_up(server: Server) -> None:
    host = server.deploy("-n", "lasting", str(REPOSITORY / "examples" / "bun-counter"))
    assert count(server.get(host)) == 1
    server.down()
    assert not list((Path(server.data) / "run" / "vm").glob("*.sock"))
    server.up()
    assert server.instances()["lasting"]["state"] == "standby"
    assert count(server.get(host)) == 2

"""The store with real VMs: a lower tier, damage, a backup that is restored elsewhere."""

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest_http import ANSWERING
from tests.harness import TORPOR, run_command
from tests.images.standins import add_root
from tests.server import TIMEOUT_S, Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

# Its state is too large to be a row, and says whose it is.
PROGRAM = (
    ANSWERING
    + """
import hashlib, os
memory, count = bytearray(), 0
class Handler(Answering):
    def do_GET(self):
        global count
        count += 1
        host = self.headers["Host"].encode()
        while len(memory) < 300_000:
            memory.extend(hashlib.sha256(b"%d" % len(memory) + host).digest())
        body = f"{count} {hashlib.sha256(memory).hexdigest()}".encode()
        self.answer(body)
ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
)
NAMES = ("a", "b", "c")
KEEP = "[vms]\nresting_s = 0.5\n[keep]\nlower_after_s = 0.1\nsweep_s = 0.1\n"


def spec(name: str) -> dict[str, object]:
    return {
        "name": name,
        "image": "memory",
        "memory_mb": 128,
        "autostart": True,
        "service_group": {
            "services": [{"port": 80, "destination_port": 8080}],
            "domains": [{"name": name}],
        },
        "scale_to_zero": {"policy": "on", "stateful": True, "cooldown_time_ms": 600_000},
    }


def memory_of(name: str) -> str:
    """What the program of an instance has in memory."""
    memory = bytearray()
    while len(memory) < 300_000:
        host = f"{name}.localhost".encode()
        memory.extend(hashlib.sha256(b"%d" % len(memory) + host).digest())
    return hashlib.sha256(memory).hexdigest()


def ask(server: Server, name: str) -> int:
    """A request: how many there were, from a memory that is the instance's own."""
    status, body = server.get(f"{name}.localhost")
    assert status == 200, body
    count, memory = body.decode().split()
    assert memory == memory_of(name)
    return int(count)


def suspend(server: Server, name: str) -> None:
    (put,) = server.api("/v1/instances/suspend", [{"name": name}], "PUT")["instances"]
    assert put["status"] == "success", put
    server.wait_for(name, "standby")


def blobs(directory: Path) -> list[Path]:
    return sorted(directory.glob("??/*"))


def wait_until_empty(directory: Path) -> None:
    ends_s = time.monotonic() + TIMEOUT_S
    while blobs(directory):
        assert time.monotonic() < ends_s, f"still there: {blobs(directory)}"
        time.sleep(0.05)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "python", "memory", ("python3", "-c", PROGRAM), ("8080",))
    return data


@pytest.fixture
def server(data: Path) -> Iterator[Server]:
    """A server with three instances, the last two of them clones of one template."""
    lower = data.parent / "lower"
    (data / "config.toml").write_text(f'[server]\nlower_tier = "{lower}"\n{KEEP}')
    with Server(data) as server:
        for name in NAMES:
            (made,) = server.api("/v1/instances", [spec(name)], "POST")["instances"]
            assert made["status"] == "success", made
            server.wait_for(name, "running")
            assert ask(server, name) == 1
        yield server


def test_cold_states_are_woken_from_the_lower_tier(server: Server, data: Path) -> None:
    lower = data.parent / "lower"
    for round_ in (2, 3):
        for name in NAMES:
            suspend(server, name)
        wait_until_empty(data / "blobs")
        assert len(blobs(lower)) >= 4, "two templates, and a state of both clones"
        # So that no template is in anybody's memory.
        server.down()
        server.up()
        for name in NAMES:
            assert ask(server, name) == round_


def test_damage_is_found_and_never_run(server: Server, data: Path) -> None:
    lower = data.parent / "lower"
    for name in NAMES:
        suspend(server, name)
    wait_until_empty(data / "blobs")
    assert server.torpor("store", "check") == ""
    server.down()
    check: list[str | Path] = [TORPOR, "--data", data, "store", "check"]
    uuids = set()
    for path in blobs(lower):
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        done = run_command(check)
        assert done.status == 1
        (line,) = done.stdout.decode().splitlines()
        assert line.startswith(f"blob {path.name} is damaged; used by ")
        uuids |= set(line.partition("used by ")[2].partition(":")[0].split(", "))
        path.write_bytes(whole)
    assert run_command(check).status == 0
    damaged = max(blobs(lower), key=lambda path: path.stat().st_mtime_ns)
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    server.up()
    assert uuids == {str(one["uuid"]) for one in server.instances().values()}
    answers = {name: server.get(f"{name}.localhost")[0] for name in NAMES}
    assert set(answers.values()) <= {200, 502}
    assert 502 in answers.values(), "a damaged state was run"
    for name, status in answers.items():
        # The client hears that its VM is gone before that is written down.
        server.wait_for(name, "running" if status == 200 else "standby")
    # Put back, it is as good as it was.
    damaged.write_bytes(whole)
    for name in NAMES:
        assert ask(server, name) > 1


def test_a_backup_of_a_server_that_runs_is_restored_elsewhere(
    server: Server, data: Path, tmp_path: Path
) -> None:
    suspend(server, "a")
    for _ in range(3):
        ask(server, "b")
    suspend(server, "b")
    stop, failures = threading.Event(), []

    def busy() -> None:
        """Goes on being asked and put down, all the time."""
        try:
            while not stop.is_set():
                ask(server, "c")
                suspend(server, "c")
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=busy)
    thread.start()
    target = tmp_path / "elsewhere"
    try:
        server.torpor("store", "backup", str(target))
    finally:
        stop.set()
        thread.join()
    assert not failures
    server.down()
    # It has all in its upper tier. The lower one is the other data directory's.
    (target / "config.toml").write_text("")
    data.rename(tmp_path / "gone")
    (tmp_path / "lower").rename(tmp_path / "gone-too")
    with Server(target) as restored:
        assert {one["state"] for one in restored.instances().values()} == {"standby"}
        assert ask(restored, "a") == 2
        assert ask(restored, "b") == 5
        assert ask(restored, "c") >= 1
        assert restored.torpor("store", "check") == ""
    (tmp_path / "gone").rename(data)
    (tmp_path / "gone-too").rename(tmp_path / "lower")
    server.up()

"""Files of states through torpord: they are handed on, and lose nothing when they are damaged."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_store import blobs, suspend
from tests.guest_http import ANSWERING
from tests.harness import TORPOR, run_command
from tests.images.standins import add_root
from tests.server import TIMEOUT_S, Server, serving_spec
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

HELD_BYTES = 24 << 20
PROGRAM = (
    ANSWERING
    + f"""
import hashlib, os
held, count = [], 0
class Handler(Answering):
    def do_GET(self):
        global count
        count += 1
        if self.path == "/hold":
            held.append(os.urandom({HELD_BYTES}))
        if self.path == "/count":
            self.answer(str(count).encode())
        else:
            self.answer(hashlib.sha256(held[0]).hexdigest().encode())
ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "python", "holder", ("python3", "-c", PROGRAM), ("8080",))
    return data


@pytest.fixture
def server(data: Path) -> Iterator[Server]:
    """A server with a clone of a template."""
    with Server(data) as server:
        for name in ("first", "holder"):
            policy = {"policy": "on", "stateful": True, "cooldown_time_ms": 600_000}
            spec = serving_spec(name, "holder", policy, memory_mb=256)
            (made,) = server.api("/v1/instances", [spec], "POST")["instances"]
            assert made["status"] == "success", made
            server.wait_for(name, "running")
            assert ask(server, "/count", name) == "1"
        yield server


def ask(server: Server, path: str, name: str = "holder") -> str:
    status, body = server.get(f"{name}.localhost", path)
    assert status == 200, (status, body)
    return body.decode()


def state_file(data: Path) -> Path:
    """Of the large state."""
    (path,) = [path for path in blobs(data / "blobs") if path.stat().st_size > HELD_BYTES]
    return path


def users(path: Path) -> list[str]:
    """The programs that have a file open."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if descriptor.readlink() == path:
                found.append((descriptor.parents[1] / "comm").read_text().strip())
        except OSError:
            continue
    return found


def test_a_large_state_is_read_where_it_lies(server: Server, data: Path) -> None:
    digest = ask(server, "/hold")
    for round_ in range(3):
        suspend(server, "holder")
        path = state_file(data)
        assert ask(server, "/count") == str(3 + 2 * round_)
        assert "torpor-vmm" in users(path)
        assert ask(server, "/digest" if round_ == 2 else "/count") == (
            digest if round_ == 2 else str(4 + 2 * round_)
        )
    assert server.torpor("store", "check") == ""


def test_damage_that_shows_late_loses_nothing(server: Server, data: Path) -> None:
    digest = ask(server, "/hold")
    suspend(server, "holder")
    path = state_file(data)
    whole = path.read_bytes()
    # In a page of what the program holds.
    path.write_bytes(whole[: -HELD_BYTES // 2] + b"?" + whole[-HELD_BYTES // 2 + 1 :])
    done = run_command([TORPOR, "--data", data, "store", "check"])
    assert done.status == 1
    assert f"blob {path.name} is damaged".encode() in done.stdout
    assert ask(server, "/count") == "3"
    status, _ = server.get("holder.localhost", "/digest")
    assert status == 502
    server.wait_for("holder", "standby")
    (log,) = server.api("/v1/instances/log", [{"name": "holder"}])["instances"]
    assert b"the checksum of chunk" in base64.b64decode(log["output"])
    path.write_bytes(whole)
    # What was not stored before the damage was met is lost, and nothing else.
    ends_s = time.monotonic() + TIMEOUT_S
    while ask(server, "/digest") != digest:
        assert time.monotonic() < ends_s
    assert int(ask(server, "/count")) > 3


@pytest.mark.parametrize("damage", ["gone", "another", "older"])
def test_a_template_that_disappears_loses_nothing(
    server: Server, data: Path, tmp_path: Path, damage: str
) -> None:
    """Its clone stays as it is, and goes on when the file is there again."""
    suspend(server, "holder")
    suspend(server, "first")
    server.down()  # so that no process has it
    aside = tmp_path / "aside"
    aside.mkdir()
    files = blobs(data / "blobs")
    for path in files:
        whole = path.read_bytes()
        (aside / path.name).write_bytes(whole)
        if damage == "gone":
            path.unlink()
        elif damage == "another":
            path.write_bytes(whole[:9] + b"?" * (len(whole) - 9))
        else:
            path.write_bytes(whole[:8] + b"\x02" + whole[9:])  # of the format's version 2
    server.up()
    status, body = server.get("holder.localhost", "/count")
    assert status in (502, 503), (status, body)
    assert server.state("holder") == "standby"
    (start,) = server.api("/v1/instances/start", [{"name": "holder"}], "PUT")["instances"]
    wanted = {"gone": "is missing", "another": "version", "older": "version 2 of the format"}
    assert wanted[damage] in start["message"], start
    for path in files:
        path.write_bytes((aside / path.name).read_bytes())
    assert ask(server, "/count") == "2"

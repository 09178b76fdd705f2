"""A file system that fills up under a server with VMs: reads go on, and it recovers by itself."""

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.harness import small_disk
from tests.images.standins import add_root
from tests.server import Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm
SIZE_MB = 64
# Counts in a file of its own memory.
PROGRAM = r"""
mkdir -p /tmp/www/cgi-bin
cat >/tmp/www/cgi-bin/count <<'END'
#!/bin/sh
read number </tmp/number
echo $((number + 1)) >/tmp/number
printf 'Content-Type: text/plain\r\n\r\n%s' $((number + 1))
END
chmod +x /tmp/www/cgi-bin/count
echo 0 >/tmp/number
exec httpd -f -p 8080 -h /tmp/www
"""


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "data", SIZE_MB) as data:
        add_root(ImageStore(data), "busybox", "count", ("sh", "-c", PROGRAM), ("8080",))
        yield data


def spec(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "count", "memory_mb": 64, **more}


def served(name: str) -> dict[str, Any]:
    group = {
        "services": [{"port": 80, "destination_port": 8080}],
        "domains": [{"name": name}],
    }
    asleep = {"policy": "on", "stateful": True, "cooldown_time_ms": 600_000}
    return spec(name, autostart=True, service_group=group, scale_to_zero=asleep)


def count(server: Server, name: str) -> int:
    status, body = server.get(f"{name}.localhost", "/cgi-bin/count")
    assert status == 200, body
    return int(body)


def suspend(server: Server, name: str) -> str:
    (item,) = server.api("/v1/instances/suspend", [{"name": name}], "PUT")["instances"]
    return str(item.get("message") or item["status"])


def fill(data: Path) -> Path:
    """Takes all the room that there is."""
    filler = data / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


def test_it_goes_on_without_room_and_recovers(data: Path) -> None:
    with Server(data) as server:
        for name in ("awake", "asleep"):
            (made,) = server.api("/v1/instances", [served(name)], "POST")["instances"]
            assert made["status"] == "success", made
            server.wait_for(name, "running")
            assert [count(server, name) for _ in range(2)] == [1, 2]
            assert suspend(server, name) == "success"
        assert count(server, "awake") == 3
        filler = fill(data)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (data / "more").write_bytes(bytes(1 << 20))
        (data / "more").unlink()

        # What is left of the database's own room is used up; then it says what is wrong.
        recorded, refused = set(), ""
        large = {"LARGE": "x" * 60_000}
        for number in range(0, 4000, 20):
            names = [f"n{number + one}" for one in range(20)]
            body = [spec(name, env=large) for name in names]
            items = server.api("/v1/instances", body, "POST")["instances"]
            recorded |= {item["name"] for item in items if item["status"] == "success"}
            failures = [item["message"] for item in items if item["status"] == "error"]
            if failures:
                refused = failures[0]
                break
        assert "no space left on the server's disk" in refused

        # Reads, requests and wakes go on; a standby that cannot be stored does not happen.
        assert len(server.api("/v1/instances?details=false")["instances"]) == len(recorded) + 2
        assert count(server, "awake") == 4
        assert count(server, "asleep") == 3
        said = suspend(server, "awake")
        assert said == "success" or "no space left" in said
        assert count(server, "awake") == 5

        # Likewise behind a kill of torpord, which finds the disk full.
        killed = server.torpord()
        os.kill(killed, signal.SIGKILL)
        server.wait_for_torpord(other_than=killed)
        assert count(server, "awake") == 6
        assert count(server, "asleep") == 4

        filler.unlink()
        for name, expected in (("awake", 7), ("asleep", 5)):
            assert suspend(server, name) == "success"
            assert count(server, name) == expected
        (made,) = server.api("/v1/instances", [spec("later", env=large)], "POST")["instances"]
        assert made["status"] == "success", made
        assert set(server.instances()) == recorded | {"awake", "asleep", "later"}
        server.down()
        assert server.torpor("store", "check") == ""
        server.up()
        assert count(server, "awake") == 8

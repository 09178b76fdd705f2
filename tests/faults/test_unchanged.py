"""A stateful instance that stays awake is checkpointed in the background only if it has changed."""

import sqlite3
import time
from pathlib import Path

import pytest

from tests.images.standins import add_root
from tests.server import TIMEOUT_S, Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

SILENT = """
import socket
listener = socket.create_server(("0.0.0.0", 8080))
served = 0
while True:
    connection, _ = listener.accept()
    served += 1
    connection.recv(65536)
    body = str(served).encode()
    head = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
    connection.sendall(head + body)
    connection.close()
"""
TICKING = """
import time
while True:
    time.sleep(0.05)
"""


def test_what_has_done_nothing_is_not_written_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "config.toml").write_text("[keep]\ncheckpoint_s = 0.2\n")
    for name, program in (("silent", SILENT), ("ticking", TICKING)):
        add_root(ImageStore(data), "python", name, ("python3", "-c", program), ("8080",))
    services = {
        "services": [{"port": 80, "destination_port": 8080}],
        "domains": [{"name": "silent"}],
    }
    awake = {"policy": "on", "stateful": True, "cooldown_time_ms": 3_600_000}
    silent = {"name": "silent", "image": "silent", "service_group": services}
    ticking = {"name": "ticking", "image": "ticking", "service_group": {**services, "domains": []}}
    with Server(data) as server:
        specs = [spec | {"scale_to_zero": awake, "autostart": True} for spec in (silent, ticking)]
        made = server.api("/v1/instances", specs, "POST")["instances"]
        assert [one["status"] for one in made] == ["success"] * 2, made

        def after_checkpoints(number: int) -> int:
            """The generation of the silent one, so many checkpoints of the other one later."""
            first = generations(server)["ticking"]
            ends_s = time.monotonic() + TIMEOUT_S
            while generations(server)["ticking"] < first + number:
                assert time.monotonic() < ends_s, "the one that does something is not checkpointed"
                time.sleep(0.02)
            return generations(server)["silent"]

        for name in ("silent", "ticking"):
            server.wait_for(name, "running")
        before = 0
        for count in (b"1", b"2"):
            assert server.get("silent.localhost") == (200, count)
            # What is under way of the proxy's connection has ended by the second of these.
            after_checkpoints(3)
            generation = after_checkpoints(3)
            assert generation > before
            assert after_checkpoints(5) == generation
            before = generation
        server.kill_vm(made[0]["uuid"])
        assert server.get("silent.localhost") == (200, b"3")


def generations(server: Server) -> dict[str, int]:
    """Of the last committed states, by instance."""
    path = server.data / "torpor.db"
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return dict(reader.execute("SELECT name, generation FROM instances").fetchall())
    finally:
        reader.close()

"""Instances that differ in their environment alone: differences to the template of one of them."""

from pathlib import Path

import pytest

from tests.guest_http import ANSWERING
from tests.images.standins import add_root
from tests.server import Server
from torpor.images.store import ImageStore
from torpor.store import Store

pytestmark = pytest.mark.kvm

COUNT = 4
PYTHON = (
    ANSWERING
    + """
import os
class Handler(Answering):
    def do_GET(self):
        body = f"{os.environ['USER_ID']} {os.urandom(8).hex()}".encode()
        self.answer(body)
HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
)
# Math.random draws from a state that lies in memory: it is no secret, and repeats.
BUN = """
const early = Math.random();
Bun.serve({port: 8080, fetch: () => new Response(
  `${process.env.USER_ID} ${early}/${Math.random()}/${crypto.randomUUID()}`)});
"""


def spec(number: int) -> dict[str, object]:
    return {
        "name": f"n{number}",
        "image": "environment",
        "memory_mb": 256,
        "env": {"USER_ID": f"user-{number}"},
        "autostart": True,
        "service_group": {
            "services": [{"port": 80, "destination_port": 8080}],
            "domains": [{"name": f"n{number}"}],
        },
        "scale_to_zero": {"policy": "on", "stateful": True, "cooldown_time_ms": 500},
    }


@pytest.mark.parametrize(
    ("root", "command", "part"),
    [("python", ("python3", "-c", PYTHON), 10), ("bun", ("bun", "-e", BUN), 10)],
    ids=["CPython", "Bun"],
)
def test_each_has_its_environment_and_little_disk(
    tmp_path: Path, root: str, command: tuple[str, ...], part: int
) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), root, "environment", command, ("8080",))
    names = [f"n{number}" for number in range(COUNT)]
    drawn: list[str] = []
    with Server(data) as server:
        server.api("/v1/instances", [spec(number) for number in range(COUNT)], "POST")
        for _ in range(2):  # awake for the first time, and after a sleep
            for number, name in enumerate(names):
                status, body = server.get(f"{name}.localhost")
                user, random = body.decode().split()
                assert (status, user) == (200, f"user-{number}")
                drawn.append(random)
            for name in names:
                server.wait_for(name, "standby")
    secrets = [one.rpartition("/")[2] for one in drawn]
    assert len(set(secrets)) == len(secrets), "random numbers repeat"
    store = Store(data)
    try:
        rows = [store.instances.find(1, "instance", name=name) for name in names]
        found = [one for row in rows if (one := store.snapshots.find(row.id)) is not None]
        sizes = {one.template.id: one.template.size_bytes for one in found if one.template}
        # The first has a state of its own, and the second is the template of all the others.
        assert len(sizes) == 2
        assert all(one.size_bytes * part <= min(sizes.values()) for one in found)
    finally:
        store.close()


DRAWING = """
const early = process.env.DRAWS ? crypto.randomUUID() : "none";
Bun.serve({port: 8080, fetch: () => new Response(`${early} ${crypto.randomUUID()}`)});
"""


def test_those_that_draw_before_they_are_ready_have_no_secret_in_common(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "bun", "environment", ("bun", "-e", DRAWING), ("8080",))
    drawn: list[str] = []
    with Server(data) as server:
        # The second is the family's template, and draws nothing.
        for number in range(6):
            draws = {"DRAWS": "1"} if number > 2 else {}
            wanted = spec(number) | {"env": {"USER_ID": f"user-{number}", **draws}}
            server.api("/v1/instances", [wanted], "POST")
            status, body = server.get(f"n{number}.localhost")
            assert status == 200
            early, later = body.decode().split()
            assert (early == "none") == (number <= 2)
            drawn += [one for one in (early, later) if one != "none"]
    assert len(set(drawn)) == len(drawn) == 9, drawn

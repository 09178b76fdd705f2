"""`torpor checkpoint`, `branch`, `instance create --template`, and `deploy` of what is unreachable.

What a program has counted in memory tells whose state an instance goes on from.
"""

import asyncio
from pathlib import Path

import pytest

from tests.api.command import call
from tests.guest_http import ANSWERING
from tests.images.standins import add_root
from tests.server import Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

COUNTING = (
    ANSWERING
    + """
import itertools, sys
counter = itertools.count(1)
class Handler(Answering):
    def do_GET(self):
        self.answer(str(next(counter)).encode())
ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""
)


def add_counting(data: Path, name: str, address: str, port: str) -> None:
    """An image whose program counts requests at an address, and says that it is for port 8080."""
    command = ("python3", "-c", COUNTING, address, port)
    add_root(ImageStore(data), "python", name, command, ("8080",))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    return directory


def test_states_go_on_under_other_names(data: Path) -> None:
    add_counting(data, "counting", "0.0.0.0", "8080")  # noqa: S104 -- in a guest
    with Server(data) as server:
        host = server.deploy("-n", "app", "counting")
        assert [server.get(host)[1] for _ in range(2)] == [b"1", b"2"]
        assert server.torpor("checkpoint", "create", "app", "two") == "two\n"
        assert server.get(host) == (200, b"3")
        server.torpor("branch", "app", "twig", "-p", "80:8080")
        assert [server.get(name)[1] for name in ("twig.localhost", host)] == [b"4", b"4"]
        for name in ("one", "other"):
            server.torpor("checkpoint", "restore", "two", name, "-p", "80:8080")
            assert server.get(f"{name}.localhost") == (200, b"3")
        assert "two" in server.torpor("instance", "history", "one")
        server.torpor("checkpoint", "rm", "-y", "two")
        assert server.get("one.localhost") == (200, b"4")

        server.torpor("template", "create", "seed", "counting")
        words = ("instance", "create", "--template", "seed", "-p", "80:8080", "--start", "-n")
        for name in ("left", "right"):
            server.torpor(*words, name)
            server.wait_for(name, "running")
            assert server.get(f"{name}.localhost") == (200, b"1")


@pytest.mark.parametrize(("address", "port"), [("127.0.0.1", "8080"), ("0.0.0.0", "9000")])  # noqa: S104
def test_a_deployment_that_nobody_can_reach(data: Path, address: str, port: str) -> None:
    add_counting(data, "deaf", address, port)
    with Server(data):
        done = asyncio.run(call(data, "deploy", "-n", "app", "deaf"))
    assert "http://app.localhost" in done.stdout
    assert "warning: app: nobody listened on port 8080 within 10 s" in done.stderr

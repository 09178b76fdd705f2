"""Many first starts of one configuration at once, at a cool-down of a millisecond."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.guest_http import ANSWERING
from tests.images.standins import add_root
from tests.server import Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

STARTS = 25
REQUESTS = 4
PROGRAM = (
    ANSWERING
    + """
import json
n = 0
class Handler(Answering):
    def do_GET(self):
        global n
        n += 1
        identity = json.load(open("/run/torpor/instance"))
        body = json.dumps({"name": identity["name"], "count": n}).encode()
        self.answer(body)
HTTPServer(("0.0.0.0", 8080), Handler).serve_forever(poll_interval=None)
"""
)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("starts") / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "python", "counter", ("python3", "-c", PROGRAM), ("8080",))
    with Server(data) as server:
        yield server


@pytest.mark.parametrize("notify_ms", [0, 1], ids=["", "with notices"])
def test_first_starts_at_once_are_all_served(server: Server, notify_ms: int) -> None:
    def spec(number: int) -> dict[str, object]:
        return {
            "name": f"n{number}",
            "image": "counter",
            "memory_mb": 128,
            "autostart": True,
            "service_group": {
                "services": [{"port": 80, "destination_port": 8080}],
                "domains": [{"name": f"n{number}"}],
            },
            "scale_to_zero": {
                "policy": "on",
                "stateful": True,
                "cooldown_time_ms": 1 + notify_ms,
                "notify_time_ms": notify_ms,
            },
        }

    def ask(number: int) -> list[object]:
        (made,) = server.api("/v1/instances", [spec(number)], "POST")["instances"]
        assert made["status"] == "success", made
        answers: list[object] = []
        for _ in range(REQUESTS):
            status, body = server.get(f"n{number}.localhost")
            answers.append(json.loads(body) if status == 200 else (status, body))
        return answers

    with ThreadPoolExecutor(STARTS) as pool:
        found = list(pool.map(ask, range(STARTS)))
    assert found == [
        [{"name": f"n{number}", "count": count} for count in range(1, REQUESTS + 1)]
        for number in range(STARTS)
    ]

"""Plain TCP: a port that one service has alone, whose connections wake and outlive sleep."""

import socket
import time
from collections.abc import Iterator

import pytest

from tests.faults.test_checkpoints import Client, Lost
from tests.images.standins import add_root
from tests.server import TIMEOUT_S, Server, free_port
from tests.servers import POSTGRESQL, Redis
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

SLEEPS = 10
AWAKE_S = 1.0
"""How long is looked on while a VM of a far shorter cool-down is to stay awake."""
REDIS = ("redis-server", "--protected-mode", "no", "--dir", "/tmp")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("tcp") / "data"
    data.mkdir(mode=0o700)
    images = ImageStore(data)
    add_root(images, "redis", "redis", REDIS, ("6379",))
    add_root(images, "applications", "postgres", ("bash", "-c", POSTGRESQL), ("5432",))
    with Server(data) as server:
        yield server


def make(server: Server, name: str, image: str, destination: int, policy: str) -> int:
    """An instance behind a port of its own, which runs: the port."""
    port = free_port()
    spec = {
        "name": name,
        "image": image,
        "memory_mb": 512,
        "service_group": {
            "name": name,
            "services": [{"port": port, "destination_port": destination, "handlers": []}],
        },
        "scale_to_zero": {"policy": policy, "stateful": True, "cooldown_time_ms": 100},
    }
    (made,) = server.api("/v1/instances", [spec], "POST")["instances"]
    assert made["status"] == "success", made
    server.api("/v1/instances/start", [{"name": name}], "PUT")
    return port


def redis_at(port: int) -> Redis:
    return Redis(("127.0.0.1", port))


def test_policy_on_sleeps_without_connections(server: Server) -> None:
    port = make(server, "eager", "redis", 6379, "on")
    redis = redis_at(port)
    assert redis.ask(b"INCR", b"n") == 1
    server.wait_for("eager", "running")  # it may have answered before its process said so
    ends_s = time.monotonic() + AWAKE_S
    while time.monotonic() < ends_s:
        assert server.state("eager") == "running"
        time.sleep(0.05)
    redis.close()
    for number in range(SLEEPS):
        server.wait_for("eager", "standby")
        redis = redis_at(port)
        assert redis.ask(b"INCR", b"n") == number + 2
        redis.close()


def test_policy_idle_keeps_connections_open(server: Server) -> None:
    port = make(server, "drowsy", "redis", 6379, "idle")
    redis, subscriber = redis_at(port), redis_at(port)
    assert subscriber.ask(b"SUBSCRIBE", b"news") == [b"subscribe", b"news", 1]
    (metrics,) = server.api("/v1/instances/metrics?name=drowsy")["instances"]
    assert (metrics["nconns"], metrics["nreqs"], metrics["nqueued"]) == (2, 0, 0)
    assert metrics["ntotal"] == 2
    assert min(metrics["rx_bytes"], metrics["tx_bytes"]) > 0
    for number in range(SLEEPS):
        server.wait_for("drowsy", "standby")
        assert redis.ask(b"INCR", b"n") == number + 1
        server.wait_for("drowsy", "standby")
        assert redis.ask(b"PUBLISH", b"news", b"%d" % number) == 1
        assert subscriber.answer() == [b"message", b"news", b"%d" % number]
    redis.close()
    subscriber.close()


def test_a_session_of_a_database_outlives_sleep(server: Server) -> None:
    port = make(server, "database", "postgres", 5432, "idle")
    ends_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            session = Client(port, tls=False)
            break
        except Lost:
            assert time.monotonic() < ends_s
            time.sleep(0.1)
    with session:
        session.query("create temporary table mine (n int)")
        for _ in range(SLEEPS):
            server.wait_for("database", "standby")
            session.query("insert into mine select count(*) from mine")
        server.wait_for("database", "standby")
        assert session.query("select count(*), max(n) from mine") == [[str(SLEEPS), "9"]]


def test_a_port_that_another_program_has_is_refused(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        services = [{"port": port, "destination_port": 6379, "handlers": []}]
        http = {"port": 80, "destination_port": 8080}
        groups = [{"name": "taken", "services": services}, {"name": "free", "services": [http]}]
        answer = server.api("/v1/services", groups, "POST")["service_groups"]
        assert [one["status"] for one in answer] == ["error", "success"]
        assert f"port {port} of the host is taken" in answer[0]["message"]
        instance = {"name": "app", "image": "redis", "service_group": {"services": services}}
        (refused,) = server.api("/v1/instances", instance, "POST")["instances"]
        assert refused["status"] == "error"
        assert f"port {port} of the host is taken" in refused["message"]
    server.torpor("service", "create", "taken", "-p", f"{port}:6379/tcp")


def test_a_port_belongs_to_one_service(server: Server) -> None:
    port = free_port()
    server.torpor("service", "create", "first", "-p", f"{port}:6379/tcp")
    services = [{"port": port, "destination_port": 6379, "handlers": []}]
    answer = server.api("/v1/services", {"name": "second", "services": services}, "POST")
    (refused,) = answer["service_groups"]
    assert refused["status"] == "error"
    assert refused["message"] == f"Port {port} is in use by service group 'first'"
    server.torpor("service", "rm", "--yes", "first")
    server.torpor("service", "create", "second", "-p", f"{port}:6379/tcp")

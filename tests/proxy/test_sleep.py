"""Waking and sleeping: one wake per host, silence, races, connections that outlive a sleep."""

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.proxy.client import Client, get
from tests.proxy.daemon import Proxy, Refusal, Torpord
from tests.proxy.guest import CLOSE, OPEN, Connection, Guest, Program, answer, echo, read_request

HOST = "app.localhost"


class Instance:
    """An instance that torpord wakes and puts to sleep as it is asked."""

    def __init__(
        self,
        torpord: Torpord,
        program: Program,
        *,
        policy: str = "on",
        cooldown_ms: int = 0,
        notify_ms: int = 0,
        egress: dict[str, Any] | None = None,
    ) -> None:
        self.torpord = torpord
        self.program = program
        self.how: dict[str, Any] = {
            "policy": policy,
            "cooldown_ms": cooldown_ms,
            "notify_ms": notify_ms,
            "egress": egress,
        }
        self.id = str(uuid.uuid4())
        self.group_id = str(uuid.uuid4())
        self.generation = 0
        self.state: dict[int, Connection] = {}
        self.guest: Guest | None = None
        self.lock = threading.Lock()
        self.asleep = threading.Event()
        self.asleep.set()
        self.closes = True
        self.allow_sleep: Callable[[], bool] = lambda: True
        torpord.on["wake"] = self.wake
        torpord.on["idle"] = self.idle

    def wake(self, fields: dict[str, Any]) -> dict[str, Any]:
        assert fields.get("instance", self.id) == self.id
        if fields.get("host", HOST) != HOST:
            raise Refusal("unknown")
        with self.lock:
            if self.guest is None:
                self.asleep.clear()
                self.guest = Guest(self.program, generation=self.generation, state=self.state)
                self.torpord.ask(
                    "group",
                    group=self.group_id,
                    hosts=[HOST],
                    services=[{"port": 80, "destination_port": 8080}],
                )
                resumed = self.generation > 0
                self.torpord.attach(self.guest, self.group_id, self.id, resumed=resumed, **self.how)
            return {"group": self.group_id, "instance": self.id, "generation": self.generation}

    def idle(self, fields: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            assert (fields["instance"], fields["generation"]) == (self.id, self.generation)
            assert self.guest is not None
            if not self.allow_sleep():
                return {"parked": False, "why": "not now"}
            self.state = self.guest.sleep(closes=self.closes)
            self.guest = None
            self.generation += 1
            self.asleep.set()
            return {"parked": True}


def test_a_request_wakes_and_silence_puts_to_sleep(proxy: Proxy, torpord: Torpord) -> None:
    instance = Instance(torpord, echo)
    with Client(proxy.address) as client:
        for n in range(30):
            assert client.get(HOST).status == 200, "over one connection of the client"
            assert instance.asleep.wait(30)
            assert instance.state == {}, "no connection of the proxy's outlives an incarnation"
            assert (torpord.count("wake"), torpord.count("idle")) == (n + 1, n + 1)


def test_many_requests_cause_one_wake(proxy: Proxy, torpord: Torpord) -> None:
    instance = Instance(torpord, echo, cooldown_ms=60_000)
    slow = instance.wake

    def wake(fields: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.3)
        return slow(fields)

    torpord.on["wake"] = wake
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: get(proxy.address, HOST), range(100)))
    assert {answer.status for answer in answers} == {200}
    assert torpord.count("wake") == 1


def test_an_idle_connection_to_the_guest_keeps_nothing_awake(
    proxy: Proxy, torpord: Torpord
) -> None:
    instance = Instance(torpord, echo, cooldown_ms=200)
    assert get(proxy.address, HOST).status == 200
    assert instance.guest is not None
    guest = instance.guest
    assert instance.asleep.wait(30)
    assert [kind for _, kind in guest.seen if kind in (OPEN, CLOSE)] == [OPEN, CLOSE]


def test_an_answer_under_way_holds_the_vm_awake(proxy: Proxy, torpord: Torpord) -> None:
    go_on = threading.Event()

    def program(connection: Connection) -> None:
        read_request(connection)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        assert go_on.wait(30)
        connection.send(b"later")

    instance = Instance(torpord, program)
    with Client(proxy.address) as client:
        client.send(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        client.head()
        assert client.exactly(5) == b"first"
        assert not instance.asleep.wait(0.3)
        go_on.set()
        assert client.exactly(5) == b"later"
        assert instance.asleep.wait(30)


def test_a_request_during_standby_takes_it_back(proxy: Proxy, torpord: Torpord) -> None:
    """torpord is asked to wake the instance, and answers `idle` with false before that."""
    instance = Instance(torpord, echo)
    asked, decided = threading.Event(), threading.Event()

    def idle(_: dict[str, Any]) -> dict[str, Any]:
        asked.set()
        assert decided.wait(30)
        return {"parked": False, "why": "a request has come"}

    def wake(fields: dict[str, Any]) -> dict[str, Any]:
        if instance.guest is not None:
            assert fields == {"instance": instance.id}
            decided.set()
        return instance.wake(fields)

    torpord.on.update(idle=idle, wake=wake)
    assert get(proxy.address, HOST).status == 200
    assert asked.wait(30)
    torpord.on["idle"] = instance.idle
    assert get(proxy.address, HOST).status == 200
    assert instance.generation in (0, 1)
    assert torpord.count("wake") == 2


def test_nothing_is_sent_while_idle_is_undecided(proxy: Proxy, torpord: Torpord) -> None:
    instance = Instance(torpord, echo)
    asked, decided = threading.Event(), threading.Event()

    def idle(fields: dict[str, Any]) -> dict[str, Any]:
        asked.set()
        assert decided.wait(30)
        return instance.idle(fields)

    def wake(fields: dict[str, Any]) -> dict[str, Any]:
        # Nobody is told that it runs while it is about to sleep.
        assert not asked.is_set() or instance.asleep.wait(30)
        return instance.wake(fields)

    torpord.on.update(idle=idle, wake=wake)
    assert get(proxy.address, HOST).status == 200
    assert asked.wait(30)
    assert instance.guest is not None
    guest = instance.guest
    # The last word before: the end of the connection that the proxy kept for further requests.
    deadline = time.monotonic() + 30
    while CLOSE not in [kind for _, kind in guest.seen]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # A guest that writes is owed credit, and gets none now.
    for _ in range(6):
        guest.write(b"x" * 10_000)
    torpord.wait_for(lambda: len(torpord.output(instance.id)) == 60_000)
    before = len(guest.seen)
    waiting = ThreadPoolExecutor(1).submit(get, proxy.address, HOST)
    torpord.wait_for(lambda: torpord.count("wake") == 2)
    assert len(guest.seen) == before
    decided.set()
    assert waiting.result(30).status == 200


def test_standby_is_not_asked_for_again_at_once(proxy: Proxy, torpord: Torpord) -> None:
    instance = Instance(torpord, echo)
    instance.allow_sleep = lambda: False
    assert get(proxy.address, HOST).status == 200
    torpord.wait_for(lambda: torpord.count("idle") >= 1)
    began = time.monotonic()
    torpord.wait_for(lambda: torpord.count("idle") >= 2)
    assert time.monotonic() - began > 0.5


def test_those_used_longest_ago_make_room(proxy: Proxy, torpord: Torpord) -> None:
    """One that can't sleep does not keep others from it: it is the last then."""
    instances: dict[str, str] = {}
    may_sleep = threading.Event()

    def idle(fields: dict[str, Any]) -> dict[str, Any]:
        if fields["instance"] == instances["first"] and not may_sleep.is_set():
            return {"parked": False, "why": "not now"}
        return {"parked": True}

    def asked() -> list[str]:
        return [fields["instance"] for name, fields in torpord.asked if name == "idle"]

    torpord.on["idle"] = idle
    for name in ("third", "first", "second"):
        group = torpord.group([f"{name}.localhost"])
        instances[name] = torpord.attach(Guest(echo), group)
    for name in ("first", "second", "third"):
        assert get(proxy.address, f"{name}.localhost").status == 200
    order = [instances["first"], instances["second"], instances["third"]]
    torpord.tell("relieve", instances=2)
    torpord.wait_for(lambda: len(asked()) == 2)
    assert sorted(asked()) == sorted(order[:2])
    torpord.tell("relieve", instances=1)
    torpord.wait_for(lambda: len(asked()) == 3)
    assert asked()[2] == order[2]
    may_sleep.set()
    torpord.tell("relieve", instances=1)
    torpord.wait_for(lambda: len(asked()) == 4)
    assert asked()[3] == order[0]


def test_idle_is_asked_again_of_the_next_torpord(proxy: Proxy, torpord: Torpord) -> None:
    instance = Instance(torpord, echo)
    asked = threading.Event()

    def idle(_: dict[str, Any]) -> dict[str, Any]:
        asked.set()
        torpord.gone.wait(30)
        raise OSError

    torpord.on["idle"] = idle
    assert get(proxy.address, HOST).status == 200
    assert asked.wait(30)
    torpord.close()
    connected = threading.Event()

    def idle_again(fields: dict[str, Any]) -> dict[str, Any]:
        assert connected.wait(30)
        return instance.idle(fields)

    next_one = Torpord(proxy.data, {"idle": idle_again, "wake": instance.wake})
    assert next_one.welcome["links"][0]["quiet"]
    instance.torpord = next_one
    connected.set()
    assert instance.asleep.wait(30)
    assert get(proxy.address, HOST).status == 200
    next_one.close()


@pytest.mark.parametrize(
    ("code", "status", "asked"),
    [("unknown", 404, 1), ("stopped", 503, 2), ("failed", 502, 4), ("nonsense", 502, 4)],
)
def test_wakes_that_fail(
    proxy: Proxy, torpord: Torpord, code: str, status: int, asked: int
) -> None:
    def wake(_: dict[str, Any]) -> dict[str, Any]:
        raise Refusal(code, "first line\nsecond line")

    torpord.on["wake"] = wake
    for _ in range(2):
        got = get(proxy.address, HOST)
        assert got.status == status
        assert ("retry-after" in got.fields) == (status == 503)
    assert torpord.count("wake") == asked
    if status == 502:
        assert "first line" in proxy.logged()
        assert "second line" not in proxy.logged()


def test_a_busy_server_is_asked_again(proxy: Proxy, torpord: Torpord) -> None:
    instance = Instance(torpord, echo)
    answers = iter([True, True, False])

    def wake(fields: dict[str, Any]) -> dict[str, Any]:
        if next(answers):
            raise Refusal("busy", "no memory")
        return instance.wake(fields)

    torpord.on["wake"] = wake
    assert get(proxy.address, HOST).status == 200
    assert torpord.count("wake") == 3


def test_a_miss_is_remembered_until_it_is_told_otherwise(proxy: Proxy, torpord: Torpord) -> None:
    for _ in range(3):
        assert get(proxy.address, HOST).status == 404
    assert torpord.count("wake") == 1
    instance = Instance(torpord, echo)
    torpord.tell("forget", hosts=[HOST])
    assert get(proxy.address, HOST).status == 200
    assert instance.generation <= 1


def test_a_parked_instance_is_drained_and_goes_on(proxy: Proxy, torpord: Torpord) -> None:
    release = threading.Event()

    def program(connection: Connection) -> None:
        read_request(connection)
        assert release.wait(30)
        answer(connection, b"done")

    instance = Instance(torpord, program, cooldown_ms=3_600_000)
    pool = ThreadPoolExecutor(4)
    first = pool.submit(get, proxy.address, HOST)
    torpord.wait_for(lambda: torpord.count("wake") == 1)
    while not any(link["in_flight"] for link in torpord.ask("stats")["links"]):
        time.sleep(0.01)
    which = {"instance": instance.id, "generation": 0}
    parked = pool.submit(torpord.ask, "park", **which, drain_ms=30_000)
    release.set()
    assert first.result(30).body == b"done"
    assert parked.result(30)["in_flight"] == 0

    def wake(fields: dict[str, Any]) -> dict[str, Any]:
        torpord.ask("go_on", **which)
        return instance.wake(fields)

    torpord.on["wake"] = wake
    assert get(proxy.address, HOST).body == b"done"


def test_an_instance_that_stops_takes_nothing_new_and_ends_what_it_has(
    proxy: Proxy, torpord: Torpord
) -> None:
    release = threading.Event()

    def program(connection: Connection) -> None:
        read_request(connection)
        assert release.wait(30)
        answer(connection, b"done")

    instance = Instance(torpord, program, cooldown_ms=3_600_000)
    pool = ThreadPoolExecutor(4)
    first = pool.submit(get, proxy.address, HOST)
    torpord.wait_for(lambda: torpord.count("wake") == 1)
    while not any(link["in_flight"] for link in torpord.ask("stats")["links"]):
        time.sleep(0.01)
    which = {"instance": instance.id, "generation": 0}

    def stopped(_fields: dict[str, Any]) -> dict[str, Any]:
        raise Refusal("stopped")

    torpord.on["wake"] = stopped
    assert torpord.ask("drain", **which, drain_ms=0)["in_flight"] == 1
    drained = pool.submit(torpord.ask, "drain", **which, drain_ms=30_000)
    assert get(proxy.address, HOST).status == 503
    assert not drained.done()
    release.set()
    assert first.result(30).body == b"done"
    assert drained.result(30)["in_flight"] == 0
    torpord.ask("go_on", **which)
    assert get(proxy.address, HOST).body == b"done"


@pytest.mark.parametrize("policy", ["on", "idle"])
def test_a_guest_that_holds_on_stays_awake(proxy: Proxy, torpord: Torpord, policy: str) -> None:
    def program(connection: Connection) -> None:
        while (request := read_request(connection)) is not None:
            connection.guest.hold(b"hold" in request[0])
            answer(connection, b"done")

    instance = Instance(torpord, program, policy=policy)
    assert get(proxy.address, HOST, "/hold").status == 200
    assert not instance.asleep.wait(0.5)
    assert get(proxy.address, HOST, "/go").status == 200
    assert instance.asleep.wait(30)


@pytest.mark.parametrize("policy", ["on", "idle"])
def test_a_guest_is_told_before_it_sleeps(proxy: Proxy, torpord: Torpord, policy: str) -> None:
    told: list[tuple[bytes, float]] = []

    def program(connection: Connection) -> None:
        if connection.port == 138:
            told.append((connection.recv(at_least=11), time.monotonic()))
            connection.send(b"an answer is no traffic")
            return
        echo(connection)

    instance = Instance(torpord, program, policy=policy, cooldown_ms=600, notify_ms=300)
    for n in range(3):
        assert get(proxy.address, HOST).status == 200
        assert instance.asleep.wait(30)
        assert [word for word, _ in told] == [b"scaletozero"] * (n + 1)
        assert instance.state == {}
        assert time.monotonic() - told[-1][1] >= 0.25


def test_nobody_need_hear_the_notice(proxy: Proxy, torpord: Torpord) -> None:
    instance = Instance(torpord, echo, cooldown_ms=200, notify_ms=100)
    slow = threading.Event()

    def program(connection: Connection) -> None:
        if connection.port == 138:
            slow.wait(30)
        else:
            echo(connection)

    instance.program = program
    for _ in range(3):
        assert get(proxy.address, HOST).status == 200
        assert instance.asleep.wait(30)
    slow.set()


# Connections that outlive a sleep -----------------------------------------------------------------


def upper(connection: Connection) -> None:
    """A program of WebSockets, so to speak: bytes come back in capitals."""
    request = read_request(connection)
    if request is None:
        return
    if "upgrade" not in request[1]:
        answer(connection, b"plain")
        return
    connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
    while data := connection.recv():
        connection.send(data.upper())


def upgrade(address: tuple[str, int]) -> Client:
    client = Client(address)
    client.send(
        f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".encode()
    )
    assert client.head().status == 101
    return client


def test_an_upgraded_connection_sleeps_and_its_bytes_wake(proxy: Proxy, torpord: Torpord) -> None:
    instance = Instance(torpord, upper, policy="idle", cooldown_ms=50)
    with upgrade(proxy.address) as client, upgrade(proxy.address) as other:
        for n in range(20):
            assert instance.asleep.wait(30)
            assert len(instance.state) == 2
            word = f"word {n} ".encode() * (1 + 2000 * (n % 2))
            client.send(word)
            assert client.exactly(len(word)) == word.upper()
            assert torpord.count("wake") == n + 2
        other.send(b"still here")
        assert other.exactly(10) == b"STILL HERE"
        assert instance.asleep.wait(30)
        assert get(proxy.address, HOST).body == b"plain"
    # The end of a connection is for the guest to hear, too.
    deadline = time.monotonic() + 30
    while instance.state or not instance.asleep.is_set():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_link_may_be_closed_late(proxy: Proxy, torpord: Torpord) -> None:
    """The VM process that has stored its guest is put back to rest off the wake path."""
    instance = Instance(torpord, upper, policy="idle", cooldown_ms=50)
    instance.closes = False
    with upgrade(proxy.address) as client:
        for _ in range(5):
            assert instance.asleep.wait(30)
            client.send(b"hello")
            assert client.exactly(5) == b"HELLO"
    assert "did not close" not in proxy.logged()


def test_policy_on_does_not_sleep_with_a_connection_open(proxy: Proxy, torpord: Torpord) -> None:
    instance = Instance(torpord, upper, policy="on")
    with upgrade(proxy.address):
        assert not instance.asleep.wait(0.5)
    assert instance.asleep.wait(30)


def test_an_older_generation_has_its_connections_reset(proxy: Proxy, torpord: Torpord) -> None:
    """Counts that differ from the guest's reset a connection; it is never continued elsewhere."""
    instance = Instance(torpord, upper, policy="idle", cooldown_ms=50)
    with upgrade(proxy.address) as client:
        assert instance.asleep.wait(30)
        for connection in instance.state.values():
            connection.received_bytes += 1
        client.send(b"hello")
        assert client.ended()
    instance.state = {}
    assert get(proxy.address, HOST).body == b"plain"


def test_without_resumed_connections_are_reset(proxy: Proxy, torpord: Torpord) -> None:
    instance = Instance(torpord, upper, policy="idle", cooldown_ms=50)
    with upgrade(proxy.address) as client:
        assert instance.asleep.wait(30)
        instance.generation, instance.state = 0, {}
        client.send(b"hello")
        assert client.ended()


def test_deletion_resets_sleeping_connections(proxy: Proxy, torpord: Torpord) -> None:
    instance = Instance(torpord, upper, policy="idle", cooldown_ms=50)
    with upgrade(proxy.address) as client:
        assert instance.asleep.wait(30)
        # The proxy may still be reading the link's end.
        torpord.ask("detach", instance=instance.id, generation=0, why="deleted", parked=False)
        assert client.ended()


def test_torpord_puts_a_connection_to_sleep(proxy: Proxy, torpord: Torpord) -> None:
    """Suspend by the API: park, then detach with `parked`."""
    instance = Instance(torpord, upper, policy="off")
    with upgrade(proxy.address) as client:
        which = {"instance": instance.id, "generation": 0}
        assert torpord.ask("park", **which, drain_ms=0)["in_flight"] == 1
        instance.idle(which)
        torpord.ask("detach", **which, why="stopped", parked=True)
        client.send(b"wake up")
        assert client.exactly(7) == b"WAKE UP"
        assert instance.generation == 1


def test_a_client_that_ends_its_direction_is_answered(proxy: Proxy, torpord: Torpord) -> None:
    Instance(torpord, echo)
    with Client(proxy.address) as client:
        client.send(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        client.socket.shutdown(socket.SHUT_WR)
        assert client.answer().status == 200
        assert client.ended()


@pytest.fixture
def outside() -> Iterator[socket.socket]:
    """A server that guests may reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server


PARKED_MAX = 64
HOST_ALLOWED = {"allow": ["127.0.0.1/32"]}


def dial(instance: Instance, outside: socket.socket) -> tuple[Connection, socket.socket]:
    """Wakes the instance, and connects it to the outside."""
    with instance.lock:
        assert instance.guest is not None
        connection = instance.guest.connect(17, "192.0.2.1", outside.getsockname()[1])
        assert connection.opened
    accepted, _ = outside.accept()
    return connection, accepted


def test_the_guests_own_connection_sleeps_and_its_bytes_wake(
    proxy: Proxy, torpord: Torpord, outside: socket.socket
) -> None:
    instance = Instance(torpord, upper, policy="idle", cooldown_ms=500, egress=HOST_ALLOWED)
    assert get(proxy.address, HOST).status == 200
    connection, accepted = dial(instance, outside)
    with accepted:
        for n in range(5):
            assert instance.asleep.wait(30)
            assert list(instance.state) == [17]
            word = f"word {n}".encode()
            accepted.sendall(word)
            assert connection.recv(at_least=len(word)) == word
            connection.send(word.upper())
            assert accepted.recv(100) == word.upper()
        assert torpord.count("wake") == 6
        assert instance.asleep.wait(30)
    # Its end wakes the guest as well.
    assert connection.recv() == b""
    assert torpord.count("wake") == 7


def test_policy_on_does_not_sleep_while_the_guest_is_connected(
    proxy: Proxy, torpord: Torpord, outside: socket.socket
) -> None:
    instance = Instance(torpord, upper, policy="on", cooldown_ms=300, egress=HOST_ALLOWED)
    assert get(proxy.address, HOST).status == 200
    connection, accepted = dial(instance, outside)
    with accepted:
        assert not instance.asleep.wait(1)
        connection.close()
        assert instance.asleep.wait(30)


def test_the_guests_own_connections_end_with_it(
    proxy: Proxy, torpord: Torpord, outside: socket.socket
) -> None:
    instance = Instance(torpord, upper, policy="idle", cooldown_ms=60_000, egress=HOST_ALLOWED)
    assert get(proxy.address, HOST).status == 200
    _, accepted = dial(instance, outside)
    assert instance.guest is not None
    instance.guest.die()
    with accepted, pytest.raises(ConnectionResetError):
        accepted.recv(1)


def test_what_the_policy_forbids_is_refused(
    proxy: Proxy, torpord: Torpord, outside: socket.socket
) -> None:
    instance = Instance(torpord, upper, policy="off")
    assert get(proxy.address, HOST).status == 200
    assert instance.guest is not None
    assert instance.guest.connect(17, "192.0.2.1", outside.getsockname()[1]).closed


def test_so_many_connections_are_kept_and_no_more(
    proxy: Proxy, torpord: Torpord, outside: socket.socket
) -> None:
    """Silence does not put a guest to sleep that has more; suspended it loses the youngest."""
    instance = Instance(torpord, upper, policy="idle", cooldown_ms=300, egress=HOST_ALLOWED)
    assert get(proxy.address, HOST).status == 200
    assert instance.guest is not None
    outside.listen(100)
    port = outside.getsockname()[1]
    connections = [
        instance.guest.connect(17 + 2 * n, "192.0.2.1", port) for n in range(PARKED_MAX + 2)
    ]
    accepted = [outside.accept()[0] for _ in connections]
    with ExitStack() as held:
        for one in accepted:
            held.enter_context(one)
        _park_some(instance, connections, accepted)


def _park_some(
    instance: Instance, connections: list[Connection], accepted: list[socket.socket]
) -> None:
    torpord = instance.torpord
    assert all(connection.opened for connection in connections)
    assert not instance.asleep.wait(1)
    connections.pop().close()
    assert accepted.pop().recv(1) == b""
    assert not instance.asleep.wait(1)
    which = {"instance": instance.id, "generation": 0}
    torpord.ask("park", **which, drain_ms=0)
    instance.idle(which)
    torpord.ask("detach", **which, why="stopped", parked=True)
    accepted[-1].settimeout(30)
    with pytest.raises(ConnectionResetError):
        accepted[-1].recv(1)
    accepted[0].sendall(b"still here")
    assert connections[0].recv(at_least=10) == b"still here"
    assert instance.asleep.wait(30), "64 are no hindrance"

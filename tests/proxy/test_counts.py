"""What goes over a link is counted, and an instance takes no more requests than it may."""

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.proxy.client import TIMEOUT_S, Client, get
from tests.proxy.daemon import Proxy, Refusal, Torpord
from tests.proxy.guest import Connection, Guest, answer, echo, read_request

HOST = "app.localhost"


def stopped(fields: dict[str, Any]) -> dict[str, Any]:
    raise Refusal("stopped", f"{fields} is to be deleted")


def request(host: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def wait_until(condition: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def used_up(torpord: Torpord) -> list[int]:
    return [fields["requests"] for name, fields in torpord.told if name == "used_up"]


def test_what_went_over_a_link_is_told_when_it_is_silent(proxy: Proxy, torpord: Torpord) -> None:
    told: list[dict[str, Any]] = []

    def idle(fields: dict[str, Any]) -> dict[str, Any]:
        told.append(fields)
        return {"parked": False, "why": "not now"}

    torpord.on["idle"] = idle
    group = torpord.group([HOST])
    torpord.attach(Guest(echo), group, cooldown_ms=0)
    with Client(proxy.address) as client:
        for _ in range(3):
            assert client.get(HOST).status == 200
    torpord.wait_for(lambda: bool(told) and told[-1]["requests"] == 3)
    assert told[-1]["rx_bytes"] > 3 * len("HTTP/1.1 200 OK")
    assert told[-1]["tx_bytes"] > 3 * len(f"GET / HTTP/1.1\r\nHost: {HOST}")
    (link,) = torpord.ask("stats")["links"]
    for count in ("requests", "rx_bytes", "tx_bytes"):
        assert link[count] == told[-1][count]


def test_who_waits_is_counted_for_whoever_may_take_it(proxy: Proxy, torpord: Torpord) -> None:
    guest, instance = Guest(echo), str(uuid.uuid4())
    group = torpord.group([HOST])
    may_wake = threading.Event()

    def wake(fields: dict[str, Any]) -> dict[str, Any]:
        assert may_wake.wait(TIMEOUT_S)
        if fields["host"] != HOST:
            raise Refusal("unknown", "nobody has it")
        torpord.attach(guest, group, instance)
        return {"group": group, "instance": instance, "generation": guest.generation}

    def waiting(skip: int = 0) -> list[dict[str, Any]]:
        return list(torpord.ask("waiting", skip=skip)["waiting"])

    torpord.on["wake"] = wake
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(proxy.address)) for _ in range(3)]
        for client, host in zip(clients, (HOST, HOST, "other.localhost"), strict=True):
            client.send(request(host))
        wait_until(lambda: torpord.ask("stats")["waiting"] == 3)
        both = [{"host": HOST, "requests": 2}, {"host": "other.localhost", "requests": 1}]
        assert (waiting(), waiting(1), waiting(2)) == (both, both[1:], [])
        may_wake.set()
        assert [client.answer().status for client in clients] == [200, 200, 404]
        assert (torpord.ask("stats")["waiting"], waiting()) == (0, [])


def test_who_waits_for_a_slot_is_counted(proxy: Proxy, torpord: Torpord) -> None:
    may_answer = threading.Event()

    def program(connection: Connection) -> None:
        read_request(connection)
        assert may_answer.wait(TIMEOUT_S)
        answer(connection, b"done")

    torpord.on["wake"] = stopped
    group = torpord.group([HOST], soft_limit=1, hard_limit=1)
    torpord.attach(Guest(program), group)
    with Client(proxy.address) as first, Client(proxy.address) as second:
        first.send(request(HOST))
        wait_until(lambda: torpord.ask("stats")["links"][0]["in_flight"] == 1)
        second.send(request(HOST))
        wait_until(lambda: torpord.ask("stats")["waiting"] == 1)
        expected = {"waiting": [{"host": HOST, "requests": 1}], "more": False}
        assert torpord.ask("waiting") == expected
        may_answer.set()
        assert (first.answer().status, second.answer().status) == (200, 200)


def test_it_takes_no_more_than_it_may(proxy: Proxy, torpord: Torpord) -> None:
    torpord.on["wake"] = stopped
    group = torpord.group([HOST])
    torpord.attach(Guest(echo), group, requests_max=3)
    with Client(proxy.address) as client:
        for _ in range(3):
            assert used_up(torpord) == []
            assert client.get(HOST).status == 200
        torpord.wait_for(lambda: used_up(torpord) == [3])
        assert client.get(HOST).status == 503
    assert used_up(torpord) == [3]


def test_what_it_may_take_can_change(proxy: Proxy, torpord: Torpord) -> None:
    torpord.on["wake"] = stopped
    group = torpord.group([HOST])
    guest = Guest(echo)
    which = {"instance": torpord.attach(guest, group), "generation": guest.generation}
    assert get(proxy.address, HOST).status == 200
    torpord.ask("allow", **which, requests_max=2)
    assert get(proxy.address, HOST).status == 200
    torpord.wait_for(lambda: used_up(torpord) == [2])
    assert get(proxy.address, HOST).status == 503
    torpord.ask("allow", **which, requests_max=None)
    torpord.ask("go_on", **which)
    assert get(proxy.address, HOST).status == 200
    torpord.ask("allow", **which, requests_max=1)
    torpord.wait_for(lambda: used_up(torpord) == [2, 3])


def test_a_request_that_is_repeated_counts_once(proxy: Proxy, torpord: Torpord) -> None:
    """The last one that it may have gets its second try, though nothing new is begun any more."""

    def program(connection: Connection) -> None:
        # One answer a connection, as a server that ends idle connections at the wrong moment.
        read_request(connection)
        answer(connection, b"done")
        read_request(connection)
        connection.close()

    torpord.on["wake"] = stopped
    service = {"port": 80, "destination_port": 8080, "handlers": ["http"]}
    group = torpord.group([HOST], services=[service | {"retry_idempotent": True}])
    torpord.attach(Guest(program), group, str(uuid.uuid4()), requests_max=2)
    with Client(proxy.address) as client:
        assert client.get(HOST).body == b"done"
        assert client.get(HOST).body == b"done"
    torpord.wait_for(lambda: used_up(torpord) == [2])


def test_any_number_of_links_is_told_to_the_next_torpord(proxy: Proxy, torpord: Torpord) -> None:
    """More than a message takes: page by page."""
    with contextlib.ExitStack() as ends:
        attached = []
        for _ in range(1500):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ends.enter_context(ours)
            attached.append(torpord.attach(SimpleNamespace(theirs=theirs, generation=1), None))
        following = Torpord(proxy.data)
        try:
            page, told = following.welcome, []
            while True:
                told += [link["instance"] for link in page["links"]]
                if not page.get("more"):
                    break
                page = following.ask("links", after=told[-1])
            assert sorted(told) == sorted(attached)
        finally:
            following.close()

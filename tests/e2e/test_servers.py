"""Servers that nobody changed answer the outside rightly while they are under load."""

import threading

import pytest

from tests.servers import SERVERS, Server, put_under_load, running

pytestmark = pytest.mark.kvm

LOAD_S = 10.0
AT_ONCE = 3
"""Servers that run side by side: more would only make each slower."""


def test_servers_under_load() -> None:
    answers: dict[str, int] = {}
    failures: list[str] = []
    places = threading.Semaphore(AT_ONCE)

    def work(server: Server) -> None:
        with places:
            try:
                with running(server) as (address, _):
                    answers[server.name] = put_under_load(server, address, LOAD_S)
            except Exception as error:
                failures.append(f"{server.name}: {error!r}")

    workers = [threading.Thread(target=work, args=(server,)) for server in SERVERS]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, "\n".join(failures)
    assert answers.keys() == {server.name for server in SERVERS}
    print(answers)

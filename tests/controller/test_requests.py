"""Requests are counted over standbys, and end an instance that may have no more."""

import asyncio

import pytest

from tests.controller.conftest import running
from tests.fake_vm import FakeHost
from tests.proxy_peer import PeerLink, ProxyPeer, Refused
from torpor.controller import Controller
from torpor.controller.model import Facts, facts_of
from torpor.controller.vm import Exit
from torpor.store import InstanceRow, Owner

pytestmark = pytest.mark.anyio


def facts(controller: Controller, row: InstanceRow) -> Facts:
    found = controller.store.instances.by_id(row.id)
    assert found is not None
    return facts_of(found.facts)


async def sleep(peer: ProxyPeer, link: PeerLink, requests: int) -> None:
    which = {"instance": link.instance, "generation": link.generation}
    answer = await peer.ask("idle", **which, requests=requests, rx_bytes=30, tx_bytes=20)
    assert answer["parked"]


async def test_counts_go_on_over_standbys(
    served: Controller, owner: Owner, peer: ProxyPeer
) -> None:
    row = await running(served, owner, "web")
    await sleep(peer, await peer.wake(instance=row.uuid), 3)
    for requests in (1, 0, 2):
        await sleep(peer, await peer.wake(instance=row.uuid), requests)
    found = facts(served, row)
    assert (found.requests, found.rx_bytes, found.tx_bytes) == (6, 80, 120)
    assert sum(found.wakeups) == 3
    assert found.wakeups_us > 0


async def test_one_without_memory_is_counted_too(
    served: Controller, owner: Owner, peer: ProxyPeer
) -> None:
    row = await running(served, owner, "web", stateful=False)
    for _ in range(3):
        await sleep(peer, await peer.wake(instance=row.uuid), 2)
    assert facts(served, row).requests == 6


async def test_it_is_deleted_behind_its_last_request(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row = await running(served, owner, "web")
    await served.update(row, "autokill", "set", {"num_requests": 5})
    link = await peer.wake(instance=row.uuid)
    allowed = [fields for name, fields in peer.asked if name == "allow"]
    assert allowed[-1]["requests_max"] == 5
    await sleep(peer, link, 3)
    link = await peer.wake(instance=row.uuid)
    assert link.attachment["requests_max"] == 2
    peer.tell("used_up", link, requests=2)
    assert await served.wait(row, "deleted", 60) == ("deleted", True)
    assert row.uuid not in host.running
    drained = [fields for name, fields in peer.asked if name == "drain"]
    assert drained[-1]["drain_ms"] > 0, "requests in flight end first"


async def test_a_lock_keeps_it(served: Controller, owner: Owner, peer: ProxyPeer) -> None:
    row = await running(served, owner, "web")
    await served.update(row, "autokill", "set", {"num_requests": 1})
    await served.update(row, "delete_lock", "set", True)
    link = await peer.wake(instance=row.uuid)
    peer.asked.clear()
    peer.tell("used_up", link, requests=1)
    await peer.until_asked("go_on")
    assert ("allow", None) in [(name, its.get("requests_max")) for name, its in peer.asked]
    await sleep(peer, link, 1)
    await served.update(row, "delete_lock", "set", False)
    with pytest.raises(Refused):
        await peer.wake(instance=row.uuid)
    assert await served.wait(row, "deleted", 60) == ("deleted", True)


async def test_the_next_torpord_hears_that_it_is_used_up(
    served: Controller, owner: Owner, peer: ProxyPeer
) -> None:
    row = await running(served, owner, "web")
    await served.update(row, "autokill", "set", {"num_requests": 1})
    link = await peer.wake(instance=row.uuid)
    peer.usage[link.instance] = {"quiet": True, "requests": 1}
    peer.hang_up()
    assert await served.wait(row, "deleted", 60) == ("deleted", True)


async def test_what_a_vm_had_that_was_killed_is_counted(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row = await running(served, owner, "web")
    await sleep(peer, await peer.wake(instance=row.uuid), 1)
    link = await peer.wake(instance=row.uuid)
    peer.usage[link.instance] = {"requests": 2, "rx_bytes": 3, "tx_bytes": 4}
    await host.next_start(row.uuid)
    live = served.lifecycle.lives.get(row.id)
    assert live is not None
    peer.lose(link)
    # A process that is killed closes its link well before it can be seen dead.
    while not live.is_unlinked:  # noqa: ASYNC110 -- nobody tells
        await asyncio.sleep(0.01)
    host.running[row.uuid].end(Exit("lost"))
    assert await served.wait(row, "standby", 30) == ("standby", True)
    found = facts(served, row)
    assert (found.requests, found.rx_bytes, found.tx_bytes) == (3, 24, 33)

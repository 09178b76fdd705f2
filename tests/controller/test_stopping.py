"""Stops: what is in flight, force, and a torpord that ends in between."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.controller.conftest import FAST, row_of, running
from tests.fake_vm import FakeHost
from tests.proxy_peer import ProxyPeer, Refused
from torpor.controller import Controller
from torpor.controller.model import facts_of
from torpor.controller.vm import Found
from torpor.store import Owner, Store

pytestmark = pytest.mark.anyio
LONG_MS = 3_600_000


async def test_a_stop_waits_for_what_is_in_flight(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    peer.drain_may_end = asyncio.Event()
    row = await running(served, owner, "web")
    stopping = await served.lifecycle.stop(row, force=False, drain_ms=LONG_MS)
    assert stopping == ("running", "draining")
    again = await served.lifecycle.stop(row, force=False, drain_ms=LONG_MS)
    assert again == ("draining", "draining")
    with pytest.raises(Refused, match="stopped: "):
        await peer.ask("wake", host="web.localhost", port=80)
    assert host.running[row.uuid].alive
    peer.drain_may_end.set()
    assert await served.wait(row, "stopped", 30) == ("stopped", True)
    assert facts_of(row_of(served, row).facts).stop_reason == 15
    drains = [fields["drain_ms"] for name, fields in peer.asked if name == "drain"]
    assert drains == [LONG_MS]


async def test_a_stop_waits_no_longer_than_was_said(
    served: Controller, owner: Owner, peer: ProxyPeer
) -> None:
    peer.drain_may_end = asyncio.Event()
    row = await running(served, owner, "web")
    await served.lifecycle.stop(row, force=False, drain_ms=1)
    assert await served.wait(row, "stopped", 30) == ("stopped", True)


@pytest.mark.parametrize(("force", "reason"), [(True, 28), (False, 15)])
async def test_a_later_stop_need_not_wait(
    served: Controller, owner: Owner, peer: ProxyPeer, force: bool, reason: int
) -> None:
    peer.drain_may_end = asyncio.Event()
    row = await running(served, owner, "web")
    await served.lifecycle.stop(row, force=False, drain_ms=LONG_MS)
    previous, _ = await served.lifecycle.stop(row, force=force)
    assert previous == "draining"
    assert await served.wait(row, "stopped", 30) == ("stopped", True)
    assert facts_of(row_of(served, row).facts).stop_reason == reason


async def test_others_of_a_group_serve_while_one_is_drained(
    served: Controller, owner: Owner, peer: ProxyPeer
) -> None:
    peer.drain_may_end = asyncio.Event()
    first = await running(served, owner, "first")
    second = await running(served, owner, "second")
    moved = row_of(served, second)
    assert first.service_id is not None
    # Both behind one name: what a request for several instances makes.
    live = served.lifecycle.lives.get(second.id)
    assert live is not None
    served.lifecycle.lives.leave(moved)
    wanted = replace(moved, service_id=first.service_id)
    live.row = await served.lifecycle.lives.write(wanted, moved)
    served.lifecycle.lives.enter(live)
    await served.lifecycle.suspend(live.row, "api")
    await served.lifecycle.stop(first, force=False, drain_ms=LONG_MS)
    # The proxy may still name the instance that it knows.
    woken = await peer.ask("wake", instance=first.uuid)
    assert woken["instance"] == second.uuid


@pytest.mark.parametrize("is_left", [True, False], ids=["its VM runs", "its VM has ended"])
@pytest.mark.parametrize("drain_ms", [0, LONG_MS])
async def test_the_next_torpord_goes_on_with_a_stop(
    store: Store, owner: Owner, tmp_path: Path, peer: ProxyPeer, drain_ms: int, is_left: bool
) -> None:
    assert peer
    host = FakeHost(stuck=True)
    first = Controller(tmp_path, store, host, backoff=FAST)
    await first.open()
    row = await running(first, owner, "web")
    await first.lifecycle.suspend(row, "api")
    await first.start(owner, row_of(first, row))
    assert await first.wait(row, "running", 30) == ("running", True)
    await first.lifecycle.stop(row_of(first, row), force=False, drain_ms=drain_ms)
    vm = host.running[row.uuid]
    await first.close()

    host = FakeHost(left_over=[Found(row.uuid, 1, vm)] if is_left else [])
    second = Controller(tmp_path, store, host, backoff=FAST)
    await second.open()
    try:
        assert await second.wait(row, "stopped", 30) == ("stopped", True)
        assert not host.running
        assert store.snapshots.find(row.id) is None
    finally:
        await second.close()

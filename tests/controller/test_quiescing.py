"""`torpor down`: what is put away, also of what comes and goes at that moment."""

import asyncio

import pytest

from tests.controller.conftest import row_of, running
from tests.controller.test_races import HOST, waking
from tests.fake_vm import FakeHost
from tests.proxy_peer import ProxyPeer, Refused
from torpor.controller import Controller, ItemError
from torpor.store import Owner

pytestmark = pytest.mark.anyio


async def test_what_wakes_just_now_keeps_its_state(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row, wake, may_end = await waking(served, owner, peer, host)
    quiescing = asyncio.create_task(served.quiesce(10))
    await asyncio.sleep(0.05)
    may_end.set()
    assert await quiescing == 0
    await asyncio.gather(wake, return_exceptions=True)
    assert row_of(served, row).state == "standby"
    assert served.store.snapshots.find(row.id) is not None
    assert not host.running


async def test_nothing_begins_behind_the_last_one(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row = await running(served, owner, "web")
    assert await served.quiesce(10) == 0
    await peer.wake(host=HOST, port=80)
    assert await served.quiesce(10, last=True) == 0
    with pytest.raises(Refused, match=r"busy: .*about to end"):
        await peer.ask("wake", host=HOST, port=80)
    with pytest.raises(ItemError, match="about to end"):
        await served.start(owner, row_of(served, row))
    with pytest.raises(AssertionError, match="about to end"):
        await running(served, owner, "late")
    assert not host.running
    assert row_of(served, row).state == "standby"

"""What comes at the same time as a wake or a standby, and the clock that jumps meanwhile."""

import asyncio
import time

import pytest

from tests.controller.conftest import running
from tests.fake_vm import FakeHost
from tests.proxy_peer import PeerLink, ProxyPeer, Refused
from torpor.controller import Controller
from torpor.controller.vm import Exit
from torpor.store import InstanceRow, Owner

pytestmark = pytest.mark.anyio
HOST = "web.localhost"


async def until_restoring(host: FakeHost, before: int) -> None:
    while host.restores == before:  # noqa: ASYNC110 -- the fake's own state
        await asyncio.sleep(0.01)


async def waking(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> tuple[InstanceRow, asyncio.Task[PeerLink], asyncio.Event]:
    """An instance in the midst of a wake, which ends when the event is set."""
    row = await running(served, owner, "web")
    await served.lifecycle.suspend(row, "api")
    host.restore_may_end, before = asyncio.Event(), host.restores
    wake = asyncio.create_task(peer.wake(host=HOST, port=80))
    await until_restoring(host, before)
    return row, wake, host.restore_may_end


async def test_two_wakes_at_once_start_one_vm(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row = await running(served, owner, "web")
    await served.lifecycle.suspend(row, "api")
    host.restore_may_end, before = asyncio.Event(), host.restores
    by_name = [asyncio.create_task(peer.wake(host=HOST, port=80)) for _ in range(3)]
    by_uuid = [asyncio.create_task(peer.wake(instance=row.uuid)) for _ in range(3)]
    await until_restoring(host, before)
    host.restore_may_end.set()
    links = await asyncio.gather(*by_name, *by_uuid)
    assert {link.generation for link in links} == {1}
    await host.next_start(row.uuid)
    assert host.restores == before + 1


async def test_a_delete_during_a_wake(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row, wake, may_end = await waking(served, owner, peer, host)
    delete = asyncio.create_task(served.delete(row))
    await asyncio.sleep(0.05)
    may_end.set()
    await delete
    # It ran for a moment, or it did not.
    await asyncio.gather(wake, return_exceptions=True)
    assert not host.running
    assert served.lifecycle.lives.all() == []
    with pytest.raises(Refused, match=r"unknown|stopped"):
        await peer.wake(host=HOST, port=80)
    with pytest.raises(Refused, match="unknown"):
        await peer.wake(instance=row.uuid)


async def test_a_standby_during_a_wake_comes_behind_it(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row, wake, may_end = await waking(served, owner, peer, host)
    suspend = asyncio.create_task(served.lifecycle.suspend(row, "api"))
    await asyncio.sleep(0.05)
    may_end.set()
    assert await suspend == ("running", "standby")
    await asyncio.gather(wake, return_exceptions=True)
    found = served.store.instances.by_id(row.id)
    assert found is not None
    assert found.generation >= 2
    again = await peer.wake(host=HOST, port=80)
    assert again.generation >= 2
    await host.next_start(row.uuid)


@pytest.mark.parametrize("by", ["name", "uuid"])
async def test_a_wake_while_the_vm_is_let_go_of(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost, by: str
) -> None:
    """The state is committed, its VM is put back to rest: the instance can be woken at once."""
    row = await running(served, owner, "web")
    link = await peer.wake(instance=row.uuid)
    host.release_may_end = asyncio.Event()
    idle = asyncio.create_task(peer.idle(link))
    await host.releasing.wait()
    which = {"host": HOST, "port": 80} if by == "name" else {"instance": row.uuid}
    wake = asyncio.create_task(peer.wake(**which))
    await asyncio.sleep(0.05)
    host.release_may_end.set()
    assert await idle
    assert (await wake).generation == 1
    await host.next_start(row.uuid)


async def test_a_vm_that_dies_while_it_is_put_down(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    """Its last generation is what goes on, and nobody is told that it is stopped."""
    row = await running(served, owner, "web")
    await served.lifecycle.suspend(row, "api")
    await peer.wake(instance=row.uuid)
    await host.next_start(row.uuid)
    host.running[row.uuid].end(Exit("lost"))
    assert (await peer.wake(host=HOST, port=80)).generation in (1, 2)
    await host.next_start(row.uuid)
    assert host.running[row.uuid].memory["lives"] == 2


async def test_timers_wake_and_jumps_of_the_clock_do_not(
    served: Controller, owner: Owner, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.next_deadline_ns = 1_500_000_000
    alarm = await running(served, owner, "alarm", wake_on_timer=True)
    deaf = await running(served, owner, "deaf")
    began_s = time.monotonic()
    for row in (alarm, deaf):
        await served.lifecycle.suspend(row, "api")
    real = time.time_ns
    for hours in (-10, 10):
        monkeypatch.setattr(time, "time_ns", lambda hours=hours: real() + hours * 3600 * 10**9)
        await asyncio.sleep(0.3)
        assert not host.running
    await host.next_start(alarm.uuid)
    assert time.monotonic() - began_s >= 1.4
    assert list(host.running) == [alarm.uuid]
    # At once would be too soon: there is a least time in standby.
    host.next_deadline_ns = 0
    began_s = time.monotonic()
    await served.lifecycle.suspend(alarm, "api")
    await host.next_start(alarm.uuid)
    assert time.monotonic() - began_s >= 0.9

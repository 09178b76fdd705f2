"""What torpord answers the proxy: wakes by host name, standby by silence, races of both."""

import asyncio

import pytest

from tests.controller.conftest import running
from tests.fake_vm import FakeHost
from tests.proxy_peer import ProxyPeer, Refused
from torpor.controller import Controller
from torpor.store import Owner

pytestmark = pytest.mark.anyio


async def test_a_wake_by_name_attaches_before_it_answers(
    served: Controller, owner: Owner, peer: ProxyPeer
) -> None:
    row = await running(served, owner, "web")
    link = await peer.wake(host="web.localhost", port=80)
    assert (link.instance, link.generation) == (row.uuid, 0)
    assert await peer.idle(link)
    assert served.lifecycle.lives.get(row.id) is None
    again = await peer.wake(host="web.localhost", port=80)
    assert (again.generation, again.attachment["resumed"]) == (1, True)
    assert await peer.idle(again)
    again = await peer.wake(host="web.localhost", port=80)
    assert (again.generation, again.attachment["resumed"]) == (2, True), "a delta"
    assert again.attachment["scale_to_zero"] == {
        "policy": "on",
        "cooldown_ms": 1000,
        "notify_ms": 0,
    }
    told = [fields for name, fields in peer.asked if name == "group"]
    assert told[-1]["hosts"] == ["web.localhost"]
    assert again.attachment["group"] == told[-1]["group"]


async def test_a_wake_that_fails_when_it_was_answered_is_answered_the_next_time(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row = await running(served, owner, "web")
    assert await peer.idle(await peer.wake(host="web.localhost", port=80))
    host.restores_fail = True
    woken = await peer.ask("wake", host="web.localhost", port=80)
    with pytest.raises(Refused, match="could not be restored"):
        await peer.wake(host="web.localhost", port=80)
    (lost,) = [
        fields for name, fields in peer.asked if name == "detach" and fields["why"] == "lost"
    ]
    assert (lost["instance"], lost["generation"]) == (woken["instance"], woken["generation"])
    host.restores_fail = False
    assert served.lifecycle.lives.get(row.id) is None
    again = await peer.wake(host="web.localhost", port=80)
    assert (again.instance, again.generation) == (row.uuid, 1)
    assert await peer.idle(again)


async def test_names_that_lead_nowhere(served: Controller, owner: Owner, peer: ProxyPeer) -> None:
    row = await running(served, owner, "web", domain="*.apps")
    assert (await peer.wake(host="a.apps.localhost", port=80)).instance == row.uuid
    for host, port, code in (
        ("nobody.localhost", 80, "unknown"),
        ("apps.localhost", 80, "unknown"),
        ("a.apps.localhost", 81, "unknown"),
    ):
        with pytest.raises(Refused, match=code):
            await peer.wake(host=host, port=port)
    with pytest.raises(Refused, match="unknown"):
        await peer.wake(instance="5f0c9f57-6b0c-4c53-9d38-2f2a5a3b9d11")
    with pytest.raises(Refused, match="stopped"):
        await peer.ask("wake", host="a.apps.localhost", port=80, **{"not": [row.uuid]})
    await served.lifecycle.stop(row, force=True)
    await served.wait(row, "stopped", 30)
    with pytest.raises(Refused, match="stopped"):
        await peer.wake(host="a.apps.localhost", port=80)


async def test_a_request_takes_a_standby_back_that_is_not_committed(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row = await running(served, owner, "web")
    link = await peer.wake(instance=row.uuid)
    vm = host.running[row.uuid]
    host.standby_may_end = asyncio.Event()
    idle = asyncio.create_task(peer.idle(link))
    while not vm.stopped:  # noqa: ASYNC110 -- the fake's own state
        await asyncio.sleep(0.01)
    wake = asyncio.create_task(peer.wake(instance=row.uuid))
    await asyncio.sleep(0.05)
    host.standby_may_end.set()
    assert not await idle
    assert (await wake).generation == 0
    assert not vm.stopped
    assert vm.alive


async def test_without_state_a_standby_keeps_nothing(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row = await running(served, owner, "web", stateful=False)
    link = await peer.wake(instance=row.uuid)
    assert await peer.idle(link)
    assert served.store.snapshots.find(row.id) is None
    again = await peer.wake(instance=row.uuid)
    assert not again.attachment["resumed"]
    assert host.running[row.uuid].memory["lives"] in (1, 2), "anew, cold or from its template"


async def test_a_new_proxy_gets_new_links(
    served: Controller, owner: Owner, peer: ProxyPeer
) -> None:
    row = await running(served, owner, "web")
    await peer.wake(instance=row.uuid)
    peer.forget_everything()
    await peer.connected.wait()
    while (row.uuid, 0) not in peer.links:  # noqa: ASYNC110 -- filled by what torpord sends
        await asyncio.sleep(0.01)
    assert (await peer.wake(host="web.localhost", port=80)).generation == 0


async def test_a_broken_message_ends_the_connection_and_no_more(
    served: Controller, owner: Owner, peer: ProxyPeer
) -> None:
    row = await running(served, owner, "web")
    for datagram in (b"", b"x" * 40, b"TPPX\x01\0\0\0\x02\0\0\0\0\0\0\0[]"):
        peer.send_raw(datagram)
        await asyncio.sleep(0.05)
        await peer.connected.wait()
    assert (await peer.wake(host="web.localhost", port=80)).instance == row.uuid

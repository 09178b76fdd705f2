"""What torpord answers the proxy: wakes by host name, standby by silence, races of both."""

import asyncio
from typing import Any

import msgspec
import pytest

from tests.controller.conftest import running
from tests.fake_vm import FakeHost
from tests.proxy_peer import PeerLink, ProxyPeer, Refused
from torpor.controller import Controller
from torpor.controller.errors import Code, ItemError
from torpor.controller.lifecycle import UNLINKED_S
from torpor.controller.model import Service, service_of
from torpor.controller.requests import CreateInstance, ServiceGroupSpec
from torpor.controller.vm import Exit
from torpor.store import InstanceRow, Owner, ServiceRow, Store

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


async def test_a_port_that_cannot_be_opened(
    served: Controller, owner: Owner, peer: ProxyPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is recorded, and what was opened for it is closed."""
    listen = served.links.listen

    async def refuse(port: int, *, alone: bool) -> None:
        if port == 9123:
            raise ItemError(Code.CONFLICTING, f"port {port} of the host is taken")
        await listen(port, alone=alone)

    async def create(name: str, *ports: int) -> InstanceRow | ItemError:
        services = [Service(port=port, destination_port=8080) for port in ports]
        group = ServiceGroupSpec(services=services)
        (answer,) = await served.create(
            owner, [CreateInstance(image="web", name=name, service_group=group)]
        )
        return answer

    monkeypatch.setattr(served.links, "listen", refuse)
    answer = await create("taken", 9122, 9123)
    assert isinstance(answer, ItemError), answer
    assert "9123 of the host is taken" in str(answer)
    assert served.store.services.listened() == []
    await peer.until_asked("close")
    assert peer.ports == set()
    # One that cannot be opened any more when the group is there keeps nothing up.
    monkeypatch.setattr(served.links, "listen", listen)
    listens = 0

    async def refuse_again(port: int, *, alone: bool) -> None:
        nonlocal listens
        listens += 1
        await (listen if listens == 1 else refuse)(port, alone=alone)

    monkeypatch.setattr(served.links, "listen", refuse_again)
    row = await create("late", 9123)
    assert isinstance(row, InstanceRow), row
    assert listens == 2


async def test_ports_of_no_group_are_closed(
    served: Controller, owner: Owner, peer: ProxyPeer
) -> None:
    async def make(name: str, *ports: int) -> ServiceRow:
        services = [Service(port=port, destination_port=8080) for port in ports]
        planned = await served.groups.planned(name=name, services=services, domains=None)
        return await served.groups.create(owner.id, planned)

    async def until_open(*ports: int) -> None:
        async with asyncio.timeout(30):
            while peer.ports != set(ports):  # noqa: ASYNC110 -- filled by what torpord sends
                await asyncio.sleep(0.01)

    await make("web", 80)
    one, two = await make("one", 9001, 9000, 900), await make("two", 9000)
    await until_open(900, 9000, 9001)
    assert served.store.services.listened() == [900, 9000, 9001]
    with pytest.raises(ItemError, match="already exists"):
        await make("two", 9002, 9000)
    await until_open(900, 9000, 9001)
    again = [{"port": port, "destination_port": 8080} for port in range(9003, 9010)]
    one = await served.groups.update(one, "services", "set", again)
    await until_open(9000, *range(9003, 9010))
    one = await served.groups.update(one, "services", "set", again[:1])
    await until_open(9000, 9003)
    peer.hang_up()
    await peer.connected.wait()
    await served.groups.remove(two)
    await until_open(9003)
    # What was deleted while nobody could tell the proxy, in more than one page.
    peer.ports |= set(range(9004, 9020))
    peer.hang_up()
    await until_open(9003)
    request = CreateInstance(
        image="web", name="refused", service_group=ServiceGroupSpec(services=[Service(port=9005)])
    )
    for _ in range(2):
        (answer, *_) = await served.create(owner, [request])
    assert isinstance(answer, ItemError), answer
    await until_open(9003, 9005)
    await served.groups.remove(one)
    await until_open(9005)


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


async def test_a_port_of_ones_own(
    served: Controller, owner: Owner, store: Store, peer: ProxyPeer
) -> None:
    """Plain TCP: clients name no host, so that one group has the port."""

    async def make(name: str, owner: Owner = owner, **service: Any) -> ServiceRow:
        services = [msgspec.convert(service, Service)]
        planned = await served.groups.planned(name=name, services=services, domains=None)
        return await served.groups.create(owner.id, planned)

    def listened() -> dict[str, Any]:
        return [fields for name, fields in peer.asked if name == "listen"][-1]

    plain = await make("plain", port=6379, handlers=[])
    assert listened() == {"port": 6379, "alone": True}
    assert not any(domain.startswith(":") for domain in plain.domains)
    request = CreateInstance(
        image="web",
        name="store",
        autostart=True,
        service_group=ServiceGroupSpec(uuid=plain.uuid),
    )
    (row,) = await served.create(owner, [request])
    assert isinstance(row, InstanceRow), row
    assert await served.wait(row, "running", 30) == ("running", True)
    assert (await peer.wake(host=":6379", port=6379)).instance == row.uuid
    (group,) = [fields for name, fields in peer.asked if name == "group"][-1:]
    assert ":6379" in group["hosts"]
    other = await store.owners.add("bob")
    passthrough: dict[str, Any] = {"handlers": [], "tls_passthrough": True}
    others: list[dict[str, Any]] = [{"handlers": []}, {"handlers": ["tls"]}, passthrough]
    for service in others:
        with pytest.raises(ItemError, match="6379 is in use by service group 'plain'"):
            await make("second", port=6379, **service)
        with pytest.raises(ItemError, match="6379 is in use by another owner"):
            await make("second", other, port=6379, **service)
    # Shared by server name, and then nobody's alone.
    await make("named", port=5432)
    passed = await make("passed", other, port=5432, **passthrough)
    assert listened() == {"port": 5432, "alone": False}
    with pytest.raises(ItemError, match="5432 is in use"):
        await make("third", port=5432, handlers=[])
    change = [{"port": 5433, "handlers": []}]
    passed = await served.groups.update(passed, "services", "set", change)
    with pytest.raises(ItemError, match="5433 is in use by another owner"):
        await served.groups.update(plain, "services", "add", change)
    await served.groups.remove(passed)
    async with asyncio.timeout(30):
        forget = {"hosts": [*passed.domains, ":5433"]}
        while {"forget": forget} not in peer.told:  # noqa: ASYNC110 -- filled by what torpord sends
            await asyncio.sleep(0.01)
    plain = await served.groups.update(plain, "services", "add", change)
    assert [service.handlers for service in service_of(plain.document).services] == [(), ()]
    with pytest.raises(ItemError, match="tls_passthrough"):
        await make("wrong", port=5434, handlers=["tls"], tls_passthrough=True)


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


async def woken_again(
    served: Controller, owner: Owner, peer: ProxyPeer
) -> tuple[InstanceRow, PeerLink]:
    """An instance that has slept, and runs; with its link."""
    row = await running(served, owner, "web")
    assert await peer.idle(await peer.wake(instance=row.uuid))
    link = await peer.wake(instance=row.uuid)
    await served.wait(row, "running", 60)
    return row, link


async def test_a_wake_waits_for_the_end_of_a_vm_that_has_lost_its_link(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row, link = await woken_again(served, owner, peer)
    vm = host.running[row.uuid]
    vm.unlink()
    peer.lose(link)
    waking = asyncio.create_task(peer.wake(instance=row.uuid))
    # A process that was killed is seen dead some time after its descriptors were closed.
    await asyncio.sleep(0.1)
    assert not waking.done()
    vm.end(Exit("lost"))
    assert await waking is not link
    await served.wait(row, "running", 60)
    assert host.running[row.uuid] is not vm
    # What was recorded of that end is what it goes on from.
    assert await peer.idle(peer.links[row.uuid, link.generation])


async def test_a_vm_that_lost_its_link_and_goes_on_is_ended(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row, link = await woken_again(served, owner, peer)
    vm = host.running[row.uuid]
    peer.lose(link)
    assert await peer.wake(instance=row.uuid) is not link
    await served.wait(row, "running", 60)
    assert not vm.alive
    assert host.running[row.uuid].memory["lives"] == 2, "from its last committed state"


async def test_the_loss_of_a_former_link_of_the_same_generation_ends_nobody(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    row = await running(served, owner, "web")
    former = await peer.wake(instance=row.uuid)
    vm = host.running[row.uuid]
    peer.asked.clear()
    peer.forget_everything()
    await peer.until_asked("attach")
    link = peer.links[row.uuid, former.generation]
    peer.lose(former)
    await asyncio.sleep(1.5 * UNLINKED_S)
    assert vm.alive
    assert (await peer.wake(instance=row.uuid)) is link


@pytest.mark.parametrize("is_slow", [False, True])
async def test_a_vm_woken_while_the_proxy_connects_has_one_link(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost, is_slow: bool
) -> None:
    row = await running(served, owner, "web")
    assert await peer.idle(await peer.wake(instance=row.uuid))
    peer.hello_may_end, host.restore_may_end = asyncio.Event(), asyncio.Event()
    peer.hang_up()
    await peer.connected.wait()
    waking = asyncio.create_task(served.lifecycle.wake(served.lifecycle.lives.current(row)))
    if not is_slow:
        host.restore_may_end.set()
        await waking
    peer.hello_may_end.set()
    await asyncio.sleep(0.1)
    host.restore_may_end.set()
    await waking
    while not served.links.connected():  # noqa: ASYNC110 -- tests only
        await asyncio.sleep(0.01)
    attached = [fields["generation"] for name, fields in peer.asked if name == "attach"]
    assert attached == [0, 1]

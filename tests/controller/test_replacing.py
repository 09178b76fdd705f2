"""One instance takes another one's place: name, service group and services, all or nothing."""

import asyncio
from pathlib import Path

import pytest

from tests.controller.conftest import FAST, running
from tests.fake_vm import FakeHost
from tests.proxy_peer import ProxyPeer, Refused
from torpor.controller import Controller, ItemError
from torpor.controller.model import Service, service_of
from torpor.controller.vm import Found
from torpor.store import ConflictError, InstanceRow, Owner, Store

pytestmark = pytest.mark.anyio
OTHER_PORT = [Service(port=80, destination_port=9000)]


def row_of(controller: Controller, row: InstanceRow) -> InstanceRow | None:
    return controller.store.instances.by_id(row.id)


async def test_the_new_one_is_where_the_former_was(
    served: Controller, owner: Owner, peer: ProxyPeer, host: FakeHost
) -> None:
    former, new = await running(served, owner, "web"), await running(served, owner, "new")
    await peer.wake(host="web.localhost", port=80)
    peer.asked.clear()
    await served.replace(new, former, OTHER_PORT)
    found = row_of(served, new)
    assert found is not None
    assert (found.name, found.service_id) == ("web", former.service_id)
    assert row_of(served, former) is None
    assert list(host.running) == [new.uuid]
    assert new.service_id is not None
    assert served.store.services.by_id(new.service_id) is None, "its own group is gone"
    # Nothing new goes to the former before the group is another, and then the new one is in it.
    told = [one for one in peer.asked if one[0] in ("drain", "group", "join")]
    names = [name for name, _ in told]
    assert (names[0], told[0][1]["instance"]) == ("drain", former.uuid)
    (_, group), (_, join) = told[names.index("join") - 1 : names.index("join") + 1]
    assert group["services"][0]["destination_port"] == 9000
    assert (join["instance"], join["group"]) == (new.uuid, group["group"])
    link = await peer.wake(host="web.localhost", port=80)
    assert link.instance == new.uuid


async def test_one_that_sleeps_is_replaced_by_one_that_sleeps(
    served: Controller, owner: Owner, peer: ProxyPeer
) -> None:
    former, new = await running(served, owner, "web"), await running(served, owner, "new")
    for row in (former, new):
        await served.lifecycle.suspend(row, "api")
    await served.replace(new, former, OTHER_PORT)
    link = await peer.wake(host="web.localhost", port=80)
    assert link.instance == new.uuid
    with pytest.raises(Refused, match="unknown"):
        await peer.wake(instance=former.uuid)


async def test_a_failure_leaves_all_as_it_was(
    served: Controller, owner: Owner, peer: ProxyPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    former, new = await running(served, owner, "web"), await running(served, owner, "new")

    async def refuse(*_: object) -> None:
        raise ConflictError("changed meanwhile")

    monkeypatch.setattr(served.store, "replace_instance", refuse)
    with pytest.raises(ItemError, match="changed meanwhile"):
        await served.replace(new, former, OTHER_PORT)
    for row in (former, new):
        found = row_of(served, row)
        assert found is not None
        assert (found.name, found.service_id) == (row.name, row.service_id)
    assert former.service_id is not None
    group = served.store.services.by_id(former.service_id)
    assert group is not None
    assert service_of(group.document).services[0].destination_port == 8080
    link = await peer.wake(host="web.localhost", port=80)
    assert link.instance == former.uuid
    assert [name for name, _ in peer.asked if name in ("drain", "go_on")] == ["drain", "go_on"]


async def test_nobody_is_woken_there_meanwhile(
    served: Controller, owner: Owner, peer: ProxyPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    former, new = await running(served, owner, "web"), await running(served, owner, "new")
    await served.lifecycle.suspend(former, "api")
    reached, may_go_on = asyncio.Event(), asyncio.Event()
    write = served.store.replace_instance

    async def slow(*rows: object) -> object:
        reached.set()
        await may_go_on.wait()
        return await write(*rows)  # type: ignore[arg-type]

    monkeypatch.setattr(served.store, "replace_instance", slow)
    replacing = asyncio.create_task(served.replace(new, former))
    await reached.wait()
    for who in ({"host": "web.localhost", "port": 80}, {"instance": former.uuid}):
        with pytest.raises(Refused, match="busy"):
            await peer.ask("wake", **who)
    may_go_on.set()
    await replacing
    assert (await peer.wake(host="web.localhost", port=80)).instance == new.uuid


@pytest.mark.parametrize("state", ["running", "lost", "standby"])
async def test_a_torpord_that_is_killed_behind_the_change_leaves_nothing(
    store: Store, owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    first_host, second_host = FakeHost(), FakeHost()
    first = Controller(tmp_path, store, first_host, backoff=FAST)
    await first.open()
    former, new = await running(first, owner, "web"), await running(first, owner, "new")
    if state == "standby":
        await first.lifecycle.suspend(former, "api")
    is_there, never = asyncio.Event(), asyncio.Event()

    async def die(*_: object) -> None:
        is_there.set()
        await never.wait()

    monkeypatch.setattr(first, "delete", die)
    monkeypatch.setattr(first.groups, "release", die)
    replacing = asyncio.create_task(first.replace(new, former))
    await is_there.wait()
    replacing.cancel()
    left = [first_host.running[new.uuid]]
    if state == "running":
        left.append(first_host.running[former.uuid])
    second_host.left_over = [Found(vm.instance, 0, vm, vm.template_base) for vm in left]
    await first.close()
    second = Controller(tmp_path, store, second_host, backoff=FAST)
    await second.open()
    assert await second.wait(former, "deleted", 60) == ("deleted", True)
    found = store.instances.by_id(new.id)
    assert found is not None
    assert (found.name, found.service_id) == ("web", former.service_id)
    assert new.service_id is not None
    async with asyncio.timeout(60):
        while store.services.by_id(new.service_id) is not None:  # noqa: ASYNC110 -- in the background
            await asyncio.sleep(0.01)
    assert former.service_id is not None
    assert store.services.by_id(former.service_id) is not None
    assert list(second_host.running) == [new.uuid]
    await second.close()

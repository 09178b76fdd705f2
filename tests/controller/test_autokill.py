"""What is deleted by itself, when, and what is not."""

import asyncio

import pytest
from msgspec.structs import replace

from tests.controller.conftest import running
from tests.fake_vm import FakeHost
from torpor.controller import Controller, ItemError
from torpor.controller.model import Autokill, Service
from torpor.controller.requests import CreateInstance
from torpor.store import InstanceRow, Owner

pytestmark = pytest.mark.anyio
SOON = Autokill(time_ms=1)
LATER = Autokill(time_ms=3_600_000)


async def make(
    controller: Controller, owner: Owner, autokill: Autokill, **spec: object
) -> InstanceRow:
    request = CreateInstance(image="web", autokill=autokill, **spec)  # type: ignore[arg-type]
    (row,) = await controller.create(owner, [request])
    assert isinstance(row, InstanceRow), row
    return row


async def stopped(
    controller: Controller, owner: Owner, autokill: Autokill, **spec: object
) -> InstanceRow:
    row = await make(controller, owner, autokill, autostart=True, **spec)
    assert await controller.wait(row, "running", 30) == ("running", True)
    await controller.lifecycle.stop(row, force=True)
    return row


async def is_deleted(controller: Controller, row: InstanceRow) -> bool:
    return await controller.wait(row, "deleted", 60) == ("deleted", True)


async def test_an_instance_goes_when_it_was_stopped_for_so_long(
    controller: Controller, owner: Owner
) -> None:
    never_started = await make(controller, owner, SOON)
    later = await stopped(controller, owner, LATER)
    with controller.events.subscribe(owner.uuid) as heard:
        row = await stopped(controller, owner, SOON)
        assert await is_deleted(controller, row)
        events = []
        while not heard.queue.empty():
            events.append(heard.queue.get_nowait())
    assert (events[-1].origin, events[-1].data["new"]) == ("autokill", "deleted")
    for kept in (never_started, later):
        assert controller.store.instances.by_id(kept.id) is not None


async def test_what_is_locked_stays_until_it_is_not(controller: Controller, owner: Owner) -> None:
    row = await stopped(controller, owner, SOON, delete_lock=True)
    other = await stopped(controller, owner, SOON)
    assert await is_deleted(controller, other), "looked for after the first was stopped"
    assert await controller.wait(row, "stopped", 30) == ("stopped", True)
    await controller.update(row, "delete_lock", "set", False)
    assert await is_deleted(controller, row)


async def test_what_is_started_again_stays(
    controller: Controller, owner: Owner, host: FakeHost
) -> None:
    row = await stopped(controller, owner, LATER)
    assert await controller.wait(row, "stopped", 30) == ("stopped", True)
    due = controller.store.instances.by_id(row.id)
    assert due is not None
    await controller.start(owner, due)
    assert await controller.wait(row, "running", 30) == ("running", True)
    await controller._kill(due)
    assert host.running[row.uuid].alive
    await controller.lifecycle.stop(due, force=True)
    assert await controller.wait(row, "stopped", 30) == ("stopped", True)
    await controller._kill(due)
    assert controller.store.instances.by_id(row.id) is not None, "it counts from the last stop"


async def test_templates_and_checkpoints_go_when_they_were_not_used(
    controller: Controller, owner: Owner
) -> None:
    source = await running(controller, owner, "source")
    checkpoint = await controller.checkpoint(owner, source, None, None, SOON)
    kept = await controller.checkpoint(owner, source, None, None, LATER)
    template = await controller.make_template(owner, source, None)
    await controller.update(template, "autokill", "set", {"time_ms": 1})
    assert await is_deleted(controller, checkpoint)
    assert await is_deleted(controller, template)
    assert controller.store.instances.by_id(kept.id) is not None


async def test_a_service_group_goes_when_it_was_empty_for_so_long(
    controller: Controller, owner: Owner
) -> None:
    groups, store = controller.groups, controller.store

    async def group(name: str, autokill: Autokill | None) -> int:
        services = [Service(port=80, destination_port=8080)]
        planned = await groups.planned(
            name=name, services=services, domains=None, autokill=autokill
        )
        made = await groups.create(owner.id, planned)
        return made.id

    empty, used, kept = await group("a", SOON), await group("b", None), await group("c", None)
    row = await running(controller, owner, "member")
    member = store.instances.by_id(row.id)
    assert member is not None
    (attached,) = await store.instances.update([replace(member, service_id=used)])
    assert isinstance(attached, InstanceRow)
    unlimited = store.services.by_id(used)
    assert unlimited is not None
    await groups.update(unlimited, "autokill", "set", {"time_ms": SOON.time_ms})
    await groups.kill_unused(10)
    assert store.services.by_id(empty) is None
    assert store.services.by_id(used) is not None
    assert store.services.by_id(kept) is not None
    (moved,) = await store.instances.update([replace(attached, service_id=None)])
    assert isinstance(moved, InstanceRow)
    await groups.release(used)
    async with asyncio.timeout(60):
        while store.services.by_id(used) is not None:
            await asyncio.sleep(0.01)
            await groups.kill_unused(10)


@pytest.mark.parametrize(
    ("autokill", "said"),
    [
        (Autokill(time_ms=-1), "time_ms"),
        (Autokill(time_ms=1 << 62), "time_ms"),
        (Autokill(num_requests=-1), "num_requests"),
        (Autokill(num_requests=1 << 62), "num_requests"),
    ],
)
async def test_what_cannot_be_is_refused(
    controller: Controller, owner: Owner, autokill: Autokill, said: str
) -> None:
    (refused,) = await controller.create(owner, [CreateInstance(image="web", autokill=autokill)])
    assert isinstance(refused, ItemError)
    with pytest.raises(ItemError, match=said):
        raise refused

"""What cannot be written down is said, or is written as soon as there is room."""

import asyncio
from pathlib import Path

import pytest

from tests.controller.conftest import FAST, row_of, running
from tests.fake_vm import FakeHost
from torpor.controller import Controller, ItemError
from torpor.controller.requests import CreateInstance
from torpor.store import NoSpaceError, Owner, Store

pytestmark = pytest.mark.anyio


def fill(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until `monkeypatch.undo()` the disk has no room."""

    async def refuse(*_: object) -> None:
        raise NoSpaceError("no space left")

    monkeypatch.setattr(store._database, "write", refuse)


async def test_creates_are_refused_one_by_one(
    controller: Controller, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(controller.store, monkeypatch)
    request = CreateInstance(image="web", autostart=True)
    refused = await controller.create(owner, [request, request])
    assert [str(one) for one in refused] == ["no space left", "no space left"]
    assert all(isinstance(one, ItemError) and one.code == 9 for one in refused)


async def test_a_stop_ends_when_there_is_room(
    controller: Controller, owner: Owner, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await running(controller, owner, "web")
    fill(controller.store, monkeypatch)
    await controller.lifecycle.stop(row, force=False)
    assert await controller.wait(row, "stopped", 0.2) == ("stopping", False)
    assert not host.running, "its program has ended all the same"
    monkeypatch.undo()
    assert await controller.wait(row, "stopped", 60) == ("stopped", True)
    assert controller.lifecycle.lives.get(row.id) is None


async def test_torpord_starts_without_room(
    store: Store, owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Controller(tmp_path, store, FakeHost(), backoff=FAST)
    await first.open()
    kept = await running(first, owner, "kept")
    await first.lifecycle.suspend(kept, "api")
    monkeypatch.setattr("torpor.controller.starting.RECORD_S", 0.0)
    lost = await running(first, owner, "lost")
    while row_of(first, lost).state != "running":  # noqa: ASYNC110 -- it tells nobody
        await asyncio.sleep(0.01)
    await first.close()
    monkeypatch.setattr("torpor.controller.lifecycle.SETTLE_S", 0.05)
    fill(store, monkeypatch)
    second = Controller(tmp_path, store, FakeHost(), backoff=FAST)
    await second.open()
    try:
        asleep = store.instances.by_id(kept.id)
        assert asleep is not None
        assert (await second.lifecycle.wake(asleep)).state == "running"
        found = store.instances.by_id(lost.id)
        assert found is not None
        with pytest.raises(ItemError, match="Cannot start an instance in state 'running'"):
            await second.start(owner, found)
        monkeypatch.undo()
        assert await second.wait(lost, "stopped", 60) == ("stopped", True)
    finally:
        await second.close()

"""`torpor down`: what is put away, also of what comes and goes at that moment, and what goes on
with the next torpord.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.controller.conftest import FAST, row_of, running
from tests.controller.test_races import HOST, waking
from tests.fake_vm import FakeHost
from tests.proxy_peer import ProxyPeer, Refused
from torpor.controller import Controller, ItemError
from torpor.controller.model import facts_of
from torpor.controller.requests import CreateInstance
from torpor.controller.restart import Backoff
from torpor.controller.vm import Exit
from torpor.store import InstanceRow, Owner, Store

pytestmark = pytest.mark.anyio
SLOW = Backoff(first_s=3600, healthy_s=3600)


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
    with pytest.raises(Refused, match=r"busy: .*about to end"):
        await peer.ask("wake", host=HOST, port=80)
    with pytest.raises(ItemError, match="about to end"):
        await served.start(owner, row_of(served, row))
    with pytest.raises(AssertionError, match="about to end"):
        await running(served, owner, "late")
    assert not host.running
    assert row_of(served, row).state == "standby"


@asynccontextmanager
async def torpord(
    store: Store, data: Path, host: FakeHost, backoff: Backoff = FAST
) -> AsyncIterator[Controller]:
    """One after the other, on the same data directory."""
    controller = Controller(data, store, host, backoff=backoff)
    await controller.open()
    try:
        yield controller
    finally:
        await controller.close()


async def test_what_keeps_no_memory_begins_anew_with_a_request(
    store: Store, owner: Owner, tmp_path: Path
) -> None:
    host = FakeHost()
    async with torpord(store, tmp_path, host) as first:
        row = await running(first, owner, "web", stateful=False)
        assert await first.quiesce(10) == 0
        assert not host.running
        asleep = row_of(first, row)
        assert (asleep.state, store.snapshots.find(row.id)) == ("standby", None)
        assert facts_of(asleep.facts).stop_reason == 39
    async with torpord(store, tmp_path, FakeHost()) as second:
        assert second.lifecycle.lives.get(row.id) is None, "nobody wants it"
        live = await second.lifecycle.wake(row_of(second, row))
        assert live.state in ("starting", "running")


async def test_a_stop_meanwhile_is_a_stop(store: Store, owner: Owner, tmp_path: Path) -> None:
    async with torpord(store, tmp_path, FakeHost(stuck=True)) as first:
        row = await running(first, owner, "web", policy="off", stateful=False)
        quiescing = asyncio.create_task(first.quiesce(10))
        while first.lifecycle.lives.state(row) != "stopping":  # noqa: ASYNC110 -- the live state
            await asyncio.sleep(0.01)
        await first.lifecycle.stop(row_of(first, row), force=True)
        assert await quiescing == 0
        assert row_of(first, row).state == "stopped"


@pytest.mark.parametrize("stateful", [True, False])
async def test_what_never_sleeps_runs_again_by_itself(
    store: Store, owner: Owner, tmp_path: Path, stateful: bool
) -> None:
    async with torpord(store, tmp_path, FakeHost()) as first:
        row = await running(first, owner, "web", policy="off", stateful=stateful)
        assert await first.quiesce(10) == 0
    host = FakeHost()
    async with torpord(store, tmp_path, host) as second:
        assert await second.wait(row, "running", 30) == ("running", True)
        assert host.running[row.uuid].memory["lives"] == (2 if stateful else 1)
        assert facts_of(row_of(second, row).facts).restart_count == 0


async def test_a_start_that_was_under_way_begins_again(
    store: Store, owner: Owner, tmp_path: Path
) -> None:
    async with torpord(store, tmp_path, FakeHost()) as first:
        request = CreateInstance(
            image="web", name="slow", autostart=True, env={"FAKE_READY": "never"}
        )
        (row,) = await first.create(owner, [request])
        assert isinstance(row, InstanceRow)
        assert await first.quiesce(10) == 0
    host = FakeHost()
    async with torpord(store, tmp_path, host):
        await asyncio.wait_for(host.next_start(row.uuid), 30)


@pytest.mark.parametrize("how", ["stop", "suspend"])
async def test_what_somebody_has_put_down_stays_so(
    store: Store, owner: Owner, tmp_path: Path, how: str
) -> None:
    async with torpord(store, tmp_path, FakeHost()) as first:
        row = await running(first, owner, "web", policy="off")
        if how == "stop":
            await first.lifecycle.stop(row, force=False)
            assert await first.wait(row, "stopped", 30) == ("stopped", True)
        else:
            await first.lifecycle.suspend(row, "api")
        assert await first.quiesce(10) == 0
    async with torpord(store, tmp_path, FakeHost()) as second:
        await asyncio.sleep(0.1)
        assert second.lifecycle.lives.get(row.id) is None
        assert row_of(second, row).state == ("stopped" if how == "stop" else "standby")


async def waiting_for_a_restart(controller: Controller, owner: Owner) -> InstanceRow:
    """An instance whose program ends as soon as it runs; only the first restart is immediate."""
    request = CreateInstance(
        image="web", name="job", autostart=True, restart_policy="always", env={"FAKE_EXIT": "1"}
    )
    (row,) = await controller.create(owner, [request])
    assert isinstance(row, InstanceRow)
    while (live := controller.lifecycle.lives.get(row.id)) is None or live.attempt < 2:  # noqa: ASYNC110 -- it tells nobody
        await asyncio.sleep(0.01)
    return row


@pytest.mark.parametrize("stopped", [False, True], ids=["", "stopped meanwhile"])
@pytest.mark.parametrize("quiesced", [False, True], ids=["killed", "put away"])
async def test_a_restart_that_was_waited_for_comes_with_the_next_torpord(
    store: Store, owner: Owner, tmp_path: Path, quiesced: bool, stopped: bool
) -> None:
    async with torpord(store, tmp_path, FakeHost(), SLOW) as first:
        row = await waiting_for_a_restart(first, owner)
        if stopped:
            assert await first.lifecycle.stop(row, force=False) == ("stopped", "stopped")
        if quiesced:
            assert await first.quiesce(10) == 0
    host = FakeHost()
    async with torpord(store, tmp_path, host, SLOW) as second:
        if stopped:
            await asyncio.sleep(0.1)
            assert not host.started.is_set()
            assert row_of(second, row).state == "stopped"
        else:
            await asyncio.wait_for(host.started.wait(), 30)


async def test_a_restart_that_is_waited_for_can_be_had_at_once(
    store: Store, owner: Owner, tmp_path: Path
) -> None:
    async with torpord(store, tmp_path, FakeHost(), SLOW) as first:
        row = await waiting_for_a_restart(first, owner)
        before = facts_of(row_of(first, row).facts).start_count
        assert await first.start(owner, row_of(first, row)) == "stopped"
        assert facts_of(row_of(first, row).facts).start_count == before + 1


async def test_what_never_sleeps_goes_on_from_its_checkpoint_when_its_vm_is_lost(
    controller: Controller, owner: Owner, host: FakeHost
) -> None:
    row = await running(controller, owner, "web", policy="off")
    live = controller.lifecycle.lives.get(row.id)
    assert live is not None
    assert await controller.lifecycle.checkpoint(live)
    host.running[row.uuid].end(Exit("lost"))
    await asyncio.wait_for(host.next_start(row.uuid), 30)
    assert await controller.wait(row, "running", 30) == ("running", True)
    assert host.running[row.uuid].memory["lives"] == 2

"""What fails, or comes between, at one step leaves nothing half done, and nobody waiting."""

import asyncio
import contextlib
import errno
import os
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from tests.controller.conftest import row_of, running
from tests.controller.test_full_disk import fill
from tests.controller.test_lifecycle import make
from tests.controller.test_lifecycle import running as plain
from tests.fake_vm import FakeHost, FakeVm
from tests.proxy_peer import ProxyPeer
from torpor.controller import Controller, ItemError
from torpor.controller.vm import Exit, Saved
from torpor.store import Content, InstanceRow, NoSpaceError, Owner, StoreError
from torpor.vmhost.vm import RunningVm
from torpor.vmprocess import Refused

pytestmark = pytest.mark.anyio


async def test_a_warm_base_that_was_dropped_is_not_given_out(
    controller: Controller, owner: Owner
) -> None:
    template = await controller.saved.add_template(owner.id, Content(b"t"), "sha256:0", bytes(32))
    warm = await controller.saved.add_warm(template, Content(b"w"))
    assert controller.templates.warm(template) == warm
    await controller.upkeep.sweep()  # no snapshot names it yet, or none does any more
    given = controller.templates.warm(template)
    if given is not None:
        await controller.saved.open_base(given)


async def test_a_commit_whose_base_is_gone_does_not_leave_the_vm_stopped(
    controller: Controller, owner: Owner, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [await running(controller, owner, f"w{number}") for number in range(2)]
    row = rows[1]  # a clone of a template with a key
    vm = host.running[row.uuid]
    assert vm.template_base is not None
    warm = await controller.saved.add_warm(vm.template_base, Content(b"w"))
    await controller.store.bases.drop(warm)
    real = FakeVm.standby

    async def standby(self: FakeVm, generation: int, **rest: Any) -> Saved:
        return replace(await real(self, generation, **rest), warm=warm)

    monkeypatch.setattr(FakeVm, "standby", standby)
    live = controller.lifecycle.lives.get(row.id)
    assert live is not None
    assert await controller.lifecycle.idle(row, live.link_generation) is not None
    assert not vm.stopped, "stopped, and nobody lets it go on"


async def test_a_stopped_state_does_not_come_back_when_the_next_vm_is_lost(
    controller: Controller, owner: Owner, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await running(controller, owner, "web")
    await controller.lifecycle.suspend(row, "api")
    real = controller.store.snapshots.discard

    async def discard(*_: object) -> None:
        raise NoSpaceError("no space left")  # or torpord is killed here

    monkeypatch.setattr(controller.store.snapshots, "discard", discard)
    with pytest.raises(StoreError):
        await controller.lifecycle.stop(row, force=False)
    monkeypatch.setattr(controller.store.snapshots, "discard", real)
    assert row_of(controller, row).state == "stopped"
    await controller.start(owner, row_of(controller, row))
    await controller.wait(row, "running", 5)
    assert host.running[row.uuid].memory["lives"] in (1, 2)
    host.running[row.uuid].end(Exit("lost"))
    await asyncio.sleep(0.3)
    now = row_of(controller, row)
    assert now.state != "standby", "it goes on as it was before somebody stopped it"


async def test_without_state_it_begins_anew(controller: Controller, owner: Owner) -> None:
    row = await running(controller, owner, "web")
    await controller.lifecycle.suspend(row, "api")
    off = {"policy": "on", "stateful": False}
    await controller.update(row_of(controller, row), "scale_to_zero", "set", off)
    for _ in range(2):
        live = await controller.lifecycle.wake(row_of(controller, row))
        assert await controller.lifecycle.idle(live.row, live.link_generation) is None
    assert controller.store.snapshots.find(row.id) is None


async def test_a_directory_that_cannot_be_made_leaves_no_vm_stopped(
    controller: Controller, owner: Owner, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.padding = 100_000
    row = await running(controller, owner, "web")
    vm = host.running[row.uuid]
    live = controller.lifecycle.lives.get(row.id)
    assert live is not None
    real = os.mkdir

    def full(path: Any, *rest: Any) -> None:
        if "blobs" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *rest)

    monkeypatch.setattr(os, "mkdir", full)
    with contextlib.suppress(Exception):
        await controller.lifecycle.idle(row, live.link_generation)
    assert not vm.stopped, "stopped, and nobody lets it go on"


async def test_a_file_that_cannot_be_removed_undoes_no_commit(
    controller: Controller, owner: Owner, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.padding = 100_000
    await running(controller, owner, "one")
    row = await running(controller, owner, "web")
    await controller.lifecycle.suspend(row, "api")
    await controller.lifecycle.wake(row_of(controller, row))
    monkeypatch.setattr(
        controller.store._files, "remove", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "x"))
    )
    vm = host.running[row.uuid]
    vm.memory["more"] = 1
    live = controller.lifecycle.lives.get(row.id)
    assert live is not None
    with contextlib.suppress(Exception):
        await controller.lifecycle.idle(live.row, live.link_generation)
    assert row_of(controller, row).generation == 2, "it is committed"
    assert controller.lifecycle.lives.get(row.id) is None, (
        f"live as {live.state} at generation {live.row.generation}; stopped: {vm.stopped}"
    )


async def test_a_checkpoint_that_failed_is_not_there(
    controller: Controller, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await running(controller, owner, "web")

    async def commit(*_: object, **__: object) -> None:
        raise NoSpaceError("no space left")

    monkeypatch.setattr(controller.store.snapshots, "commit", commit)
    with pytest.raises(ItemError, match="no space"):
        await controller.checkpoint(owner, row, "before", None, None)
    with pytest.raises(StoreError):
        controller.store.instances.find(owner.id, "checkpoint", name="before")


async def test_a_template_that_is_refused_keeps_no_sibling_starting(
    controller: Controller, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets a template of its own, and runs."""
    monkeypatch.setattr("torpor.controller.starting.READY_S", 0.1)
    for number in range(2):
        await plain(controller, owner, env={"N": str(number)}, args=["/bin/srv"])
    worker = cast("Any", SimpleNamespace(pid=1, started_ticks=1))

    async def load(_: object) -> Any:
        # As vmhost.loaded.Templates.load when its helper finds the file damaged.
        raise Refused("bad_snapshot", "the template's file is damaged")

    async def sibling(self: FakeVm, template: Any, generation: int) -> Saved:
        never = cast("Any", None)
        real = RunningVm(worker, self.instance, never, never, never, load)
        return await real.sibling(template, generation)

    monkeypatch.setattr(FakeVm, "sibling", sibling)
    row = await make(controller, owner, env={"N": "2"}, args=["/bin/srv"], autostart=True)
    assert await controller.wait(row, "running", 3) == ("running", True)


async def test_a_full_disk_keeps_nobody_from_stopping_what_was_just_started(
    controller: Controller, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.controller.starting.RECORD_S", 0.05)
    row = await running(controller, owner, "web")
    fill(controller.store, monkeypatch)
    await asyncio.sleep(0.2)
    try:
        async with asyncio.timeout(3):
            await controller.lifecycle.stop(row, force=True)
    finally:
        monkeypatch.undo()


async def test_what_could_not_be_deleted_is_started_again_all_the_same(
    controller: Controller, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await in_a_pause(controller, owner)
    fill(controller.store, monkeypatch)
    with pytest.raises(ItemError, match="no space"):
        await controller.delete(row_of(controller, row))
    monkeypatch.undo()
    now = row_of(controller, row)
    await controller.start(owner, now)


async def test_a_start_in_a_pause_that_fails_leaves_no_row_starting(
    controller: Controller, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await in_a_pause(controller, owner)
    fill(controller.store, monkeypatch)
    with pytest.raises((ItemError, StoreError), match="no space"):
        await controller.start(owner, row_of(controller, row))
    monkeypatch.undo()
    await controller.start(owner, row_of(controller, row))


async def in_a_pause(controller: Controller, owner: Owner) -> InstanceRow:
    """An instance that is to be started again much later."""
    controller.lifecycle._backoff = replace_backoff(60.0)
    row = await make(
        controller, owner, autostart=True, restart_policy="always", env={"FAKE_EXIT": "1"}
    )
    while row_of(controller, row).state != "starting" or waiting(controller, row) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return row


def waiting(controller: Controller, row: Any) -> Any:
    live = controller.lifecycle.lives.get(row.id)
    return None if live is None or live.restart is None or live.attempt < 2 else live


def replace_backoff(first_s: float) -> Any:
    from torpor.controller.restart import Backoff

    return Backoff(first_s=first_s, limit_s=first_s, healthy_s=1000)


async def test_a_wake_that_hangs_keeps_no_other_timer_waiting(
    controller: Controller, owner: Owner, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.next_deadline_ns = 0
    hung = await running(controller, owner, "hung", wake_on_timer=True)
    fine = await running(controller, owner, "fine", wake_on_timer=True)
    real = host.restore

    async def restore(who: Any, *rest: Any) -> FakeVm:
        if who.instance == hung.uuid:
            await asyncio.Event().wait()
        return await real(who, *rest)

    monkeypatch.setattr(host, "restore", restore)
    await controller.lifecycle.suspend(hung, "api")
    while controller.lifecycle.lives.state(row_of(controller, hung)) != "starting":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await controller.lifecycle.suspend(fine, "api")
    async with asyncio.timeout(8):
        await host.next_start(fine.uuid)


async def test_a_lower_tier_that_fails_ends_no_timers(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller.upkeep, "_tiered", True)
    monkeypatch.setattr(controller.upkeep, "_policy", replace_policy(controller))

    async def cool(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(controller.store.snapshots, "cool", cool)
    (task,) = [one for one in controller._background if "Upkeep.run" in repr(one)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    controller._keep(again := asyncio.create_task(controller.upkeep.run()))
    await asyncio.sleep(0.5)
    assert not again.done(), f"nothing is looked after any more: {again.exception()!r}"


def replace_policy(controller: Controller) -> Any:
    from dataclasses import replace as changed

    return changed(controller.upkeep._policy, sweep_s=0.05)


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_vm_that_takes_no_link_keeps_no_proxy_waiting(
    served: Controller,
    owner: Owner,
    peer: ProxyPeer,
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    hangs: bool,
) -> None:
    silent = await running(served, owner, "silent")
    fine = await running(served, owner, "fine")
    await served.lifecycle.suspend(fine, "api")

    async def link(end: socket.socket) -> None:
        with end:
            await asyncio.Event().wait()

    if hangs:
        monkeypatch.setattr(host.running[silent.uuid], "link", link)
    for _ in range(2):  # the proxy is started anew, and once more
        await asyncio.sleep(0.1)  # what was posted is read
        peer.forget_everything()
        await asyncio.sleep(0.1)
        await asyncio.wait_for(peer.connected.wait(), 5)
        await asyncio.sleep(0.1)
    await asyncio.wait_for(peer.wake(instance=fine.uuid), 5)


@pytest.mark.parametrize("what", ["delete", "edit"])
async def test_a_wake_behind_who_waits_for_the_lock_looks_again(
    controller: Controller, owner: Owner, host: FakeHost, what: str
) -> None:
    await running(controller, owner, "other", domain="other")
    row = await running(controller, owner, "web")
    await controller.lifecycle.suspend(row, "api")
    lock = controller.lifecycle.lives.lock(row.id)
    await lock.acquire()  # a standby, say, that is about to end
    second: asyncio.Task[Any]
    if what == "delete":
        second = asyncio.create_task(controller.delete(row_of(controller, row)))
    else:
        second = asyncio.create_task(controller.update(row, "tags", "set", ["new"]))
    await asyncio.sleep(0.05)
    # In the turn of the loop in which that ends comes a request: it runs before who waits does.
    wake = asyncio.create_task(controller.lifecycle.wake(row_of(controller, row)))
    lock.release()
    await asyncio.gather(second, wake, return_exceptions=True)
    if what == "delete":
        assert row.uuid not in host.running
        return
    vm = host.running[row.uuid]
    vm.memory["lives"] = 77
    live = controller.lifecycle.lives.get(row.id)
    assert live is not None
    await controller.lifecycle.idle(row, live.link_generation)
    assert row_of(controller, row).generation == 2, "what it did since its wake is lost"

"""Transitions, restarts, adoption and what is kept when things go wrong."""

import asyncio
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.controller.conftest import FAST
from tests.fake_vm import FakeHost, FakeVm
from torpor.controller import Code, Controller, ItemError
from torpor.controller.model import facts_of
from torpor.controller.requests import CreateInstance
from torpor.controller.restart import Backoff, wants_restart
from torpor.controller.vm import Exit, Found, Machine
from torpor.store import InstanceRow, Owner, Store

pytestmark = pytest.mark.anyio


async def make(controller: Controller, owner: Owner, **spec: object) -> InstanceRow:
    request = CreateInstance(image="web", **spec)  # type: ignore[arg-type]
    (row,) = await controller.create(owner, [request])
    assert isinstance(row, InstanceRow), row
    return row


async def running(controller: Controller, owner: Owner, **spec: object) -> InstanceRow:
    row = await make(controller, owner, autostart=True, **spec)
    assert await controller.wait(row, "running", 30) == ("running", True)
    return row


def current(controller: Controller, row: InstanceRow) -> InstanceRow:
    found = controller.store.instances.by_id(row.id)
    assert found is not None
    return found


async def test_a_wake_writes_nothing(controller: Controller, owner: Owner, host: FakeHost) -> None:
    row = await running(controller, owner)
    await controller.lifecycle.suspend(row, "api")
    asleep = current(controller, row)
    await controller.start(owner, asleep)
    assert await controller.wait(row, "running", 30) == ("running", True)
    assert current(controller, row) == asleep
    assert controller.lifecycle.lives.state(asleep) == "running"
    assert host.running[row.uuid].memory["lives"] == 2


@pytest.mark.parametrize(
    ("program", "drew", "templates"),
    [("bun", {}, 1), ("bun", {"FAKE_DREW_RANDOM": ""}, 0), ("node", {}, 0), ("srv", {}, 1)],
)
async def test_no_template_is_made_of_what_would_repeat_secrets(
    controller: Controller, owner: Owner, program: str, drew: dict[str, str], templates: int
) -> None:
    for _ in range(3):
        row = await running(controller, owner, args=[f"/bin/{program}"], env=drew)
    assert controller.lifecycle.lives.state(current(controller, row)) == "running"
    found = controller.store.bases.unneeded()
    assert len(found) == templates
    assert (b"no template is made" in controller.console.read(row.id, 0, 1 << 16)) == (
        templates == 0
    )


@pytest.fixture
def booted(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """What boots from now on, in that order."""
    boot, machines = host.boot, list[Machine]()

    async def noting(machine: Machine, *rest: Any) -> FakeVm:
        machines.append(machine)
        return await boot(machine, *rest)

    monkeypatch.setattr(host, "boot", noting)
    return machines


async def test_a_sibling_that_draws_boots_once_more_with_numbers_of_its_own(
    controller: Controller, owner: Owner, host: FakeHost, booted: list[Machine]
) -> None:
    for number in range(3):
        await running(controller, owner, env={"N": str(number)}, args=["/bin/bun"])
    for number in range(3, 5):
        env = {"N": str(number), "FAKE_DREW_RANDOM": ""}
        row = await running(controller, owner, env=env, args=["/bin/bun"])
        assert host.running[row.uuid].memory["lives"] == 1
        assert b"no template is made" in controller.console.read(row.id, 0, 1 << 16)
    await running(controller, owner, env={"N": "5"}, args=["/bin/bun"])
    seeds = [machine.seed for machine in booted]
    family = seeds[1]
    assert family is not None
    assert seeds == [None, family, family, family, None, family, None, family]


@pytest.mark.parametrize("program", ["srv", "bun"])
async def test_what_differs_in_its_environment_alone_is_a_sibling(
    controller: Controller, owner: Owner, booted: list[Machine], program: str
) -> None:
    args = [f"/bin/{program}"]
    rows = [
        await running(controller, owner, env={"N": str(number)}, args=args) for number in range(4)
    ]
    assert [machine.seed is not None for machine in booted] == [False, True, True, True]
    await running(controller, owner, env={"N": "1"}, args=["/bin/other"])
    for row in rows:
        await controller.lifecycle.suspend(controller.lifecycle.lives.current(row), "api")
    # The first may be the only one, and has all of its state for itself; the second is the
    # template of its family.
    found = [controller.store.snapshots.find(row.id) for row in rows]
    templates = [one.template for one in found if one is not None and one.template is not None]
    assert len({templates[number].id for number in (1, 2, 3)}) == 1
    assert templates[0] != templates[1]
    assert (templates[0].key is None, templates[1].key is None) == (True, False)


async def test_what_is_started_again_in_a_family_gets_a_template_of_its_own(
    controller: Controller, owner: Owner, booted: list[Machine]
) -> None:
    args = ["/bin/srv"]
    for number in range(3):
        await running(controller, owner, env={"N": str(number)}, args=args)
    # A restart is no other instance: what differs goes on as a difference.
    sibling = await running(controller, owner, env={"N": "3"}, args=args)
    await controller.lifecycle.stop(sibling, force=True)
    await controller.wait(sibling, "stopped", 30)
    await controller.start(owner, current(controller, sibling))
    await controller.wait(sibling, "running", 30)
    repeated = [await running(controller, owner, env={"N": "4"}, args=args) for _ in range(3)]
    assert [machine.instance for machine in booted[3:]] == [
        sibling.uuid, sibling.uuid, repeated[0].uuid, repeated[1].uuid
    ]  # fmt: skip

    async def template_of(row: InstanceRow) -> int | None:
        await controller.lifecycle.suspend(controller.lifecycle.lives.current(row), "api")
        saved = controller.store.snapshots.find(row.id)
        return None if saved is None or saved.template is None else saved.template.id

    ofs = [await template_of(row) for row in (sibling, *repeated)]
    assert ofs[0] == ofs[1] != ofs[2] == ofs[3]


async def test_a_lost_process_falls_back_to_the_last_generation(
    controller: Controller, owner: Owner, host: FakeHost
) -> None:
    row = await running(controller, owner)
    await controller.lifecycle.suspend(row, "api")
    await controller.start(owner, row)
    await controller.wait(row, "running", 30)
    host.running[row.uuid].end(Exit("lost"))
    assert await controller.wait(row, "standby", 30) == ("standby", True)
    assert facts_of(current(controller, row).facts).stop_reason == 5
    said = controller.console.read(row.id, 0, 1 << 16)
    assert b"torpor: the VM is gone; it goes on as it was stored last\n" in said
    await controller.start(owner, row)
    await controller.wait(row, "running", 30)
    assert host.running[row.uuid].memory["lives"] == 2, "from generation 1 again"


async def test_the_servers_log_tells_which_vm_was_lost(
    controller: Controller, host: FakeHost, owner: Owner, capfd: pytest.CaptureFixture[str]
) -> None:
    row = await running(controller, owner)
    host.running[row.uuid].end(Exit("lost"))
    await controller.wait(row, "stopped", 20)
    (line,) = capfd.readouterr().err.splitlines()
    stamp, _, rest = line.partition(" ")
    assert abs(time.time() - datetime.fromisoformat(stamp).timestamp()) < 60
    assert rest == f"torpord: instance '{row.name}' ({row.uuid}): the VM is gone; it is stopped"


async def test_a_lost_process_without_a_generation_is_stopped(
    controller: Controller, owner: Owner, host: FakeHost
) -> None:
    row = await running(controller, owner)
    host.running[row.uuid].end(Exit("lost"))
    assert await controller.wait(row, "stopped", 30) == ("stopped", True)
    assert b"the VM is gone; it is stopped\n" in controller.console.read(row.id, 0, 1 << 16)


async def test_a_program_that_does_not_mind_is_forced(
    controller: Controller, owner: Owner, host: FakeHost
) -> None:
    host.stuck = True
    row = await running(controller, owner)
    assert await controller.lifecycle.stop(row, force=False) == ("running", "stopping")
    with pytest.raises(ItemError, match="Cannot suspend an instance in state 'stopping'"):
        await controller.lifecycle.suspend(row, "api")
    with pytest.raises(ItemError, match="Cannot start an instance in state 'stopping'"):
        await controller.start(owner, row)
    await controller.lifecycle.stop(row, force=True)
    assert await controller.wait(row, "stopped", 30) == ("stopped", True)
    assert facts_of(current(controller, row).facts).stop_reason == 28


async def test_starts_at_once_start_one_vm(
    controller: Controller, owner: Owner, host: FakeHost
) -> None:
    row = await make(controller, owner)
    await asyncio.gather(*(controller.start(owner, row) for _ in range(20)))
    assert list(host.running) == [row.uuid]
    assert facts_of(current(controller, row).facts).start_count == 1


async def test_a_start_that_fails_leaves_it_stopped(controller: Controller, owner: Owner) -> None:
    row = await make(controller, owner, env={"FAKE_FAIL": "start"})
    with pytest.raises(ItemError, match="the fake cannot start"):
        await controller.start(owner, row)
    assert controller.lifecycle.lives.state(current(controller, row)) == "stopped"


async def test_delete_ends_what_runs(controller: Controller, owner: Owner, host: FakeHost) -> None:
    row = await running(controller, owner)
    assert await controller.delete(row) == "running"
    assert not host.running
    assert controller.store.instances.by_id(row.id) is None
    assert controller.lifecycle.lives.all() == []


async def test_a_restart_gives_up_when_stopped(
    controller: Controller, owner: Owner, host: FakeHost
) -> None:
    row = await running(controller, owner, restart_policy="on-failure")
    host.running[row.uuid].end(Exit("exit", 0))
    assert await controller.wait(row, "stopped", 30) == ("stopped", True)
    assert controller.lifecycle.lives.get(row.id) is None, "a clean exit is no failure"
    await controller.start(owner, row)
    await controller.wait(row, "running", 30)
    host.running[row.uuid].end(Exit("crash"))
    await host.next_start(row.uuid)
    await controller.lifecycle.stop(row, force=True)
    await controller.wait(row, "stopped", 30)
    assert controller.lifecycle.lives.get(row.id) is None


async def test_a_restart_that_fails_says_why(
    controller: Controller, owner: Owner, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise ItemError(Code.FAILED, "the fake has no luck")

    row = await running(controller, owner, restart_policy="always")
    monkeypatch.setattr(host, "boot", fail)
    monkeypatch.setattr(host, "restore", fail)
    host.running[row.uuid].end(Exit("crash"))
    said = b"torpor: it cannot start: the fake has no luck\n"
    async with asyncio.timeout(30):
        while said not in controller.console.read(row.id, 0, 1 << 16):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("generation", [0, 1], ids=["its own generation", "another generation"])
async def test_adoption(
    store: Store,
    owner: Owner,
    tmp_path: Path,
    generation: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torpor.controller.starting.RECORD_S", 0.0)
    first_host = FakeHost()
    first = Controller(tmp_path, store, first_host, backoff=FAST)
    await first.open()
    kept = await running(first, owner)
    lost = await running(first, owner)
    for row in (kept, lost):
        while current(first, row).state != "running":  # noqa: ASYNC110 -- in the background
            await asyncio.sleep(0.01)
    vm = first_host.running[kept.uuid]
    await first.close()

    second_host = FakeHost()
    second_host.left_over = [Found(kept.uuid, generation, vm)]
    second = Controller(tmp_path, store, second_host, backoff=FAST)
    await second.open()
    try:
        adopted = generation == 0
        assert second.lifecycle.lives.state(current(second, kept)) == (
            "running" if adopted else "stopped"
        )
        assert vm.alive is adopted
        assert second.lifecycle.lives.state(current(second, lost)) == "stopped"
        assert facts_of(current(second, lost).facts).stop_reason == 5
        if adopted:
            await second.lifecycle.suspend(kept, "api")
            assert current(second, kept).generation == 1
    finally:
        await second.close()


async def test_what_draws_its_siblings_random_numbers_starts_anew(
    store: Store, owner: Owner, tmp_path: Path
) -> None:
    first_host = FakeHost()
    first = Controller(tmp_path, store, first_host, backoff=FAST)
    await first.open()
    row = await make(first, owner, autostart=True, env={"FAKE_READY": "never"})
    vm = first_host.running[row.uuid]
    await first.close()

    second_host = FakeHost()
    second_host.left_over = [Found(row.uuid, 0, vm, is_seeded=True)]
    second = Controller(tmp_path, store, second_host, backoff=FAST)
    await second.open()
    try:
        await second_host.next_start(row.uuid)
        assert not vm.alive
        assert second_host.running[row.uuid] is not vm
    finally:
        await second.close()


async def test_what_is_heard_of_a_former_vm_is_void(
    controller: Controller, owner: Owner, host: FakeHost
) -> None:
    row = await running(controller, owner)
    former = host.running[row.uuid].listener
    await controller.lifecycle.suspend(row, "api")
    await controller.start(owner, current(controller, row))
    assert await controller.wait(row, "running", 30) == ("running", True)
    live = controller.lifecycle.lives.get(row.id)
    assert live is not None
    starter = controller.lifecycle._starter
    stale = starter.listener(live)
    starter.listener(live)
    for listener in (former, stale):
        listener.ready()
        listener.ended(Exit("lost"))
    await asyncio.sleep(0.05)
    assert controller.lifecycle.lives.state(current(controller, row)) == "running"
    assert host.running[row.uuid].alive


async def test_nobody_elses_process_is_adopted(store: Store, owner: Owner, tmp_path: Path) -> None:
    assert owner
    host = FakeHost()
    stranger = "5f0c9f57-6b0c-4c53-9d38-2f2a5a3b9d11"
    vm = FakeVm(host, stranger, "x", None, {}, {})  # type: ignore[arg-type]
    host.left_over = [Found(stranger, 0, vm)]
    controller = Controller(tmp_path, store, host, backoff=FAST)
    await controller.open()
    assert host.running == {}
    await controller.close()


async def test_a_saved_state_is_run_for_its_own_instance_only(
    controller: Controller, owner: Owner
) -> None:
    first, second = await running(controller, owner), await running(controller, owner)
    await controller.lifecycle.suspend(first, "api")
    await controller.lifecycle.suspend(second, "api")
    one, other = current(controller, first), current(controller, second)
    await controller.saved.read(one)
    swapped = replace(one, id=other.id)
    with pytest.raises(Exception, match="was not sealed for it"):
        await controller.saved.read(swapped)


async def test_console_offsets_go_on_when_old_bytes_go(
    controller: Controller, owner: Owner
) -> None:
    row = await make(controller, owner)
    console = controller.console
    block = b"0123456789abcdef" * 4096
    for _ in range(10):
        console.output(row.id, block)
        await console.flush()
    console.output(row.id, b"tail")
    first, last = console.bounds(row.id)
    assert last == 10 * len(block) + 4
    assert 0 < last - first <= 256 << 10
    assert console.read(row.id, last - 8, last) == b"cdeftail"
    whole = console.read(row.id, first, last)
    assert len(whole) == last - first


def test_backoff_is_as_documented() -> None:
    delays = [Backoff().delay_s(attempt) for attempt in range(1, 12)]
    assert delays == [0, 5, 10, 20, 40, 80, 160, 300, 300, 300, 300]


@given(st.integers(1, 10_000))
def test_backoff_is_bounded_and_never_falls(attempt: int) -> None:
    backoff = Backoff()
    assert 0 <= backoff.delay_s(attempt) <= backoff.delay_s(attempt + 1) <= backoff.limit_s


@pytest.mark.parametrize(
    ("result", "never", "always", "on_failure"),
    [
        (Exit("exit", 0), False, True, False),
        (Exit("exit", 1), False, True, True),
        (Exit("signal", 11), False, True, True),
        (Exit("out-of-memory", 9), False, True, True),
        (Exit("crash"), False, True, True),
    ],
)
def test_restart_policies(result: Exit, never: bool, always: bool, on_failure: bool) -> None:
    assert wants_restart("never", result) is never
    assert wants_restart("always", result) is always
    assert wants_restart("on-failure", result) is on_failure

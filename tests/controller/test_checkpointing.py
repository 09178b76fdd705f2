"""Periodic checkpoints of instances that stay awake."""

import asyncio
from pathlib import Path

import pytest

from tests.controller.conftest import FAST, running
from tests.fake_vm import FakeHost
from torpor.controller import Controller
from torpor.controller.upkeep import Policy
from torpor.store import Owner, Store

pytestmark = pytest.mark.anyio


async def test_one_that_does_not_answer_keeps_no_other_waiting(
    store: Store, host: FakeHost, owner: Owner, tmp_path: Path
) -> None:
    async def never(generation: int) -> bool:  # noqa: ARG001
        await asyncio.Event().wait()
        return True

    controller = Controller(tmp_path, store, host, backoff=FAST, policy=Policy(checkpoint_s=0.05))
    await controller.open()
    silent = await running(controller, owner, "silent")
    other = await running(controller, owner, "other")
    host.running[silent.uuid].has_changed = never  # type: ignore[method-assign]

    async def stored_again(since: int) -> int:
        while True:
            row = store.instances.by_id(other.id)
            assert row is not None
            if row.generation > since:
                return row.generation
            await asyncio.sleep(0.01)

    async with asyncio.timeout(30):
        generation = other.generation
        for _ in range(4):  # each may have been under way before
            generation = await stored_again(generation)
    await controller.close()

"""When siblings' deltas teach a warm base."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any, cast

import pytest

from torpor.controller.errors import Code, ItemError
from torpor.controller.templates import SIBLINGS, SIBLINGS_LEAST, Templates
from torpor.controller.vm import Saved
from torpor.store import Base, Content

pytestmark = pytest.mark.anyio
TEMPLATE = cast("Base", SimpleNamespace(id=1))
WARM = cast("Base", SimpleNamespace(id=2))


class World:
    """Stands in for store, saved states and host."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.taught: list[list[bytes | None]] = []
        nothing = SimpleNamespace(newest_warm=lambda _: None)
        self.templates = Templates(
            cast("Any", SimpleNamespace(bases=nothing)), cast("Any", self), cast("Any", self)
        )

    def pinned(self, base: Base) -> contextlib.nullcontext[None]:
        assert base is TEMPLATE
        return contextlib.nullcontext()

    async def learn(self, template: Base, deltas: list[Content]) -> Content:
        assert template is TEMPLATE
        self.taught.append([delta.data for delta in deltas])
        if self.fails:
            raise ItemError(Code.FAILED, "no")
        return Content(b"warm")

    async def add_warm(self, template: Base, content: Content) -> Base:
        assert (template, content.data) == (TEMPLATE, b"warm")
        return WARM

    async def sleeps(self, number: int) -> None:
        """An instance is stored, and what that sets going is waited for."""
        live = SimpleNamespace(row=SimpleNamespace(uuid=str(number)))
        self.templates.stored(cast("Any", live), Saved(Content(b"%d" % number), TEMPLATE))
        await asyncio.sleep(0)  # nothing here makes the task wait


async def test_many_siblings_teach_at_once() -> None:
    world = World()
    for number in range(SIBLINGS):
        assert not world.taught
        await world.sleeps(number)
    assert world.taught == [[b"%d" % number for number in range(SIBLINGS)]]
    assert world.templates.warm(TEMPLATE) is WARM
    await world.sleeps(SIBLINGS)
    assert len(world.taught) == 1


async def test_a_few_teach_when_one_of_them_sleeps_again() -> None:
    world = World()
    for number in range(SIBLINGS_LEAST - 1):
        await world.sleeps(number)
    await world.sleeps(0)
    assert not world.taught
    await world.sleeps(SIBLINGS_LEAST)
    assert not world.taught
    await world.sleeps(0)
    assert len(world.taught[0]) == SIBLINGS_LEAST


async def test_after_a_failure_others_teach() -> None:
    world = World(fails=True)
    for number in range(2 * SIBLINGS):
        await world.sleeps(number)
    assert [len(deltas) for deltas in world.taught] == [SIBLINGS, SIBLINGS]
    assert world.templates.warm(TEMPLATE) is None

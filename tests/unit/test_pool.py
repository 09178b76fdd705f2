"""The pool of VM processes that rest: who gets which, how many are kept, what waits for what."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, cast

import msgspec
import pytest

from torpor.store import Base
from torpor.vmhost import pool as pools
from torpor.vmhost.pool import Limits, Pool
from torpor.vmhost.worker import Rest, Worker

pytestmark = pytest.mark.anyio
BASE = Base(7, 1, b"", None, b"key", "image", b"", 1, "upper", 0, 0)


class FakeWorker:
    """What the pool knows of a VM process."""

    def __init__(self, warm_id: int | None = None, *, is_fresh: bool = False) -> None:
        self.rest = Rest(BASE.id, warm_id)
        self.alive = True
        self.killed = False
        self.is_fresh = is_fresh
        self.is_touched = asyncio.Event()
        self.may_be_touched = asyncio.Event()

    async def touch(self) -> None:
        self.is_fresh = False
        self.is_touched.set()
        await self.may_be_touched.wait()

    def kill(self) -> None:
        self.killed, self.alive = True, False


def worker(warm_id: int | None = None) -> Worker:
    return cast("Worker", FakeWorker(warm_id))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def until(true: Callable[[], bool]) -> None:
    """Waits for what background tasks bring about."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 -- nothing tells of it
            await asyncio.sleep(0.001)


class Maker:
    """Makes processes, when it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.asked: list[int | None] = []
        """Warm bases of those that are made or were."""
        self.fails: Exception | None = None

    async def __call__(self, _: Base, warm: Base | None, _is_awaited: bool) -> Worker:
        self.asked.append(None if warm is None else warm.id)
        await self.may.wait()
        if self.fails is not None:
            raise self.fails
        return worker(None if warm is None else warm.id)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
async def make_pool(maker: Maker) -> AsyncIterator[Callable[..., Pool]]:
    """Pools whose processes `maker` makes."""
    made: list[Pool] = []

    def make(limits: Limits = Limits(), *, refills: bool = False) -> Pool:  # noqa: B008 -- immutable
        pool = Pool(limits, maker, lambda _: None)
        pool.time_left = lambda: True
        if refills:
            pool.start()
        made.append(pool)
        return pool

    yield make
    for pool in made:
        await pool.close()


async def taken(pool: Pool, warm: Base | None = None) -> "asyncio.Task[Worker]":
    """A wake that has got as far as it can."""
    task = asyncio.create_task(pool.take(BASE, warm))
    for _ in range(3):
        await asyncio.sleep(0)
    return task


async def test_what_came_back_is_taken_again(make_pool: Callable[..., Pool], maker: Maker) -> None:
    pool = make_pool()
    maker.may.set()
    assert await pool.take(BASE, None)
    one = worker()
    pool.done(BASE.id)
    pool.comes(BASE)
    pool.came(BASE, one)
    assert await pool.take(BASE, None) is one
    assert maker.asked == [None]


async def test_a_wake_waits_for_one_that_is_being_reset(
    make_pool: Callable[..., Pool], maker: Maker
) -> None:
    pool, one = make_pool(), worker()
    pool.comes(BASE)
    first, second = await taken(pool), await taken(pool)
    # There is only one that comes: another is made for the next wake.
    assert maker.asked == [None]
    pool.came(BASE, one)
    assert await first is one
    maker.may.set()
    assert await second is not one
    assert pool.resting() == 0


async def test_one_is_made_when_none_comes_after_all(
    make_pool: Callable[..., Pool], maker: Maker
) -> None:
    pool = make_pool()
    pool.comes(BASE)
    waits = await taken(pool)
    assert not maker.asked
    maker.may.set()
    pool.came(BASE, None)
    assert await waits


async def test_a_wake_is_not_held_up_by_a_reset_that_hangs(
    make_pool: Callable[..., Pool], maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "PATIENCE_S", 0.01)
    maker.may.set()
    pool = make_pool()
    pool.comes(BASE)
    assert await pool.take(BASE, None)
    pool.came(BASE, one := worker())
    assert await pool.take(BASE, None) is one


async def test_few_are_made_for_many_and_one_while_others_come_back(
    make_pool: Callable[..., Pool], maker: Maker
) -> None:
    pool = make_pool()
    waiting = [await taken(pool) for _ in range(100)]
    assert len(maker.asked) == pools.MAKERS
    for number in range(50):
        pool.comes(BASE)
        pool.came(BASE, worker())
        assert await waiting[number]
    assert len(maker.asked) == pools.MAKERS
    maker.may.set()
    await asyncio.gather(*waiting)
    # One for each that nobody came back for, in the order in which they came.
    assert len(maker.asked) == 50


async def test_none_is_made_where_processors_have_no_time_and_others_come_back(
    make_pool: Callable[..., Pool], maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "PATIENCE_S", 0.01)
    monkeypatch.setattr(pools, "STALLED_S", 0.2)
    pool = make_pool(refills=True)
    pool.time_left = lambda: False
    pool.comes(BASE)
    pool.came(BASE, worker())
    assert await pool.take(BASE, None)
    waiting = [await taken(pool) for _ in range(10)]
    for one in waiting[:5]:
        pool.comes(BASE)
        pool.came(BASE, worker())
        await one
    assert not maker.asked
    maker.may.set()
    # Nobody comes back any more.
    await asyncio.gather(*waiting)
    assert len(maker.asked) >= 5


async def test_those_that_wait_are_not_counted_as_processes(
    make_pool: Callable[..., Pool], maker: Maker
) -> None:
    pool = make_pool(refills=True)
    waiting = [await taken(pool) for _ in range(100)]
    for one in waiting:
        pool.comes(BASE)
        pool.came(BASE, worker())
        await one
        pool.done(BASE.id)
    maker.may.set()
    await asyncio.sleep(0.05)
    assert pool.resting() <= pools.MAKERS + 3


async def test_who_waits_hears_why_none_can_be_made(
    make_pool: Callable[..., Pool], maker: Maker
) -> None:
    pool = make_pool()
    maker.fails = OSError("no memory")
    maker.may.set()
    with pytest.raises(OSError, match="no memory"):
        await pool.take(BASE, None)
    maker.fails = None
    assert await pool.take(BASE, None)
    assert pool.resting_of() == {BASE.id: 1}


async def test_what_comes_back_is_ended_where_there_is_no_room(
    make_pool: Callable[..., Pool], maker: Maker
) -> None:
    pool, one = make_pool(), worker()
    pool.room = lambda: False
    pool.comes(BASE)
    waits = await taken(pool)
    pool.came(BASE, one)
    assert cast("Any", one).killed
    maker.may.set()
    assert await waits is not one


async def test_what_is_made_rests_where_it_is_wanted(
    make_pool: Callable[..., Pool], maker: Maker
) -> None:
    pool, warm = make_pool(), msgspec.structs.replace(BASE, id=9, template_id=BASE.id)
    waits = await taken(pool, warm)
    pool.comes(BASE)
    pool.came(BASE, worker())
    maker.may.set()
    assert (await waits).rest == Rest(BASE.id, 9)
    assert pool.resting() == 1


async def test_nothing_is_lost_with_a_wake_that_goes_away(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()
    for cancelled_first in (True, False):
        one = worker()
        pool.comes(BASE)
        waits = await taken(pool)
        if cancelled_first:
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
            pool.came(BASE, one)
        else:
            pool.came(BASE, one)
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
        assert await pool.take(BASE, None) is one


async def test_one_that_rests_elsewhere_is_ended(
    make_pool: Callable[..., Pool], maker: Maker
) -> None:
    pool, old = make_pool(), worker(warm_id=1)
    pool.adopted(BASE)
    pool.give(old)
    maker.may.set()
    assert await pool.take(BASE, None) is not old
    assert cast("Any", old).killed


async def test_memory_bounds_what_rests_and_numbers_if_they_are_set(
    make_pool: Callable[..., Pool],
) -> None:
    for limits, room, kept in (
        (Limits(), True, 100),
        (Limits(per_template=3), True, 3),
        (Limits(total=2), True, 2),
        (Limits(), False, 0),
    ):
        pool = make_pool(limits)
        pool.room = partial(bool, room)
        pool.adopted(BASE)
        workers = [worker() for _ in range(100)]
        for one in workers:
            pool.give(one)
        assert pool.resting() == kept
        assert sum(not cast("Any", one).killed for one in workers) == kept


async def test_what_is_taken_is_replaced(make_pool: Callable[..., Pool], maker: Maker) -> None:
    pool = make_pool(refills=True)
    maker.may.set()
    assert await pool.take(BASE, None)
    await until(lambda: pool.resting() >= 1)
    assert await pool.take(BASE, None) is not None
    await until(lambda: pool.resting() >= 1)


async def test_the_new_are_touched_where_another_one_rests(
    make_pool: Callable[..., Pool], maker: Maker
) -> None:
    pool = make_pool(Limits(spare=2), refills=True)
    pool.adopted(BASE)
    new = FakeWorker(is_fresh=True)
    used = worker()
    pool.give(used)
    pool.give(cast("Worker", new))
    await until(new.is_touched.is_set)
    # Nobody waits for it: there is the other one, and then one is made.
    maker.may.set()
    assert await pool.take(BASE, None) is used
    assert await pool.take(BASE, None) is not cast("Worker", new)
    waits = await taken(pool)
    new.may_be_touched.set()
    assert await waits
    await until(lambda: pool.resting() >= 1)


async def test_a_single_one_is_not_touched(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(refills=True)
    new = FakeWorker(is_fresh=True)
    pool.adopted(BASE)
    pool.give(cast("Worker", new))
    pool.warm(BASE)
    await asyncio.sleep(0.01)
    assert await pool.take(BASE, None) is cast("Worker", new)
    assert not new.is_touched.is_set()


async def test_what_was_touched_or_used_is_taken_first(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()
    pool.adopted(BASE)
    new, used = cast("Worker", FakeWorker(is_fresh=True)), worker()
    pool.give(used)
    pool.give(new)
    assert await pool.take(BASE, None) is used
    assert await pool.take(BASE, None) is new


async def test_what_does_not_come_back_is_replaced_when_it_is_gone(
    make_pool: Callable[..., Pool], maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not at the next look, which may come after the next wakes.
    monkeypatch.setattr(pools, "TICK_S", 3600)
    pool = make_pool(Limits(reuse=False), refills=True)
    maker.may.set()
    assert await pool.take(BASE, None)
    await until(lambda: pool.resting() == 1)
    pool.done(BASE.id)
    await until(lambda: pool.resting() == 2)


async def test_a_template_that_nobody_wakes_loses_its_processes(
    make_pool: Callable[..., Pool], maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "TICK_S", 0.001)
    maker.may.set()
    pool, one = make_pool(Limits(keep_s=0.01), refills=True), worker()
    await pool.take(BASE, None)
    pool.done(BASE.id)
    pool.give(one)
    await until(lambda: cast("Any", one).killed and not pool.resting_of())

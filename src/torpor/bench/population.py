"""The instances of a density run: which there are, making them, waiting until they sleep."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torpor.bench.audit import Audit
from torpor.bench.counter import Counters
from torpor.bench.http import LostError
from torpor.bench.ledger import Ledger
from torpor.bench.server import BUSY_STATES, Api, Made, Shape, WrongServerError
from torpor.errors import TorporError

T = TypeVar("T")
SETTLE_S = 300.0
RETRY_S = 60.0
PAGE = 1000
NAME_IN_USE = 23
"""Error of an object whose name exists, as the API has it."""
SCALED_TO_ZERO = 39
"""Stop reason of an instance that went to standby by itself."""


@dataclass(slots=True)
class Population:
    """Instances by number, in the order in which they are started."""

    api: Api
    counters: Counters
    ledger: Ledger
    shape: Shape
    started: int = 0
    """Those that have answered their first request."""
    next: int = 0
    """All numbers below are taken."""
    environment: Callable[[int], dict[str, str] | None] = lambda _: None
    """Of each instance by its number; those that have the same share a template."""
    left_over: tuple[int, ...] = ()
    """Numbers below `next` that an earlier part of the run did not get to the end with."""

    @property
    def audit(self) -> Audit:
        """The judge of all answers."""
        return self.counters.audit

    async def recall(self, reach: int) -> None:
        """Finds out what an earlier part of the run has made.

        It may not have heard of the last ones: the server is asked about the next `reach` numbers.
        """
        known = [index for index in range(self.ledger.count) if self.ledger.entry(index).known]
        ends = min((known[-1] + 1 if known else 0) + reach, self.ledger.count)
        asked = sorted(set(range(ends)).difference(known))
        for first in range(0, len(asked), PAGE):
            part = asked[first : first + PAGE]
            found = await self.api.named([self.counters.name_of(index) for index in part])
            for index, one in zip(part, found, strict=True):
                if one.status != "error":
                    self.ledger.created(index, one.uuid)
                    known.append(index)
        self.next = max(known, default=-1) + 1
        self.left_over = tuple(
            index for index in range(self.next) if not self.ledger.entry(index).answered
        )
        self.started = self.next - len(self.left_over)

    def take(self, until: int) -> Iterator[int]:
        """Numbers of instances that are still to be started, so that there are `until`."""
        while self.left_over:
            first, *rest = self.left_over
            self.left_over = tuple(rest)
            yield first
        while self.next < until:
            self.next += 1
            yield self.next - 1

    async def create(self, indexes: Sequence[int]) -> None:
        """Makes those instances that are not known to exist, by one request."""
        missing = [index for index in indexes if not self.ledger.entry(index).known]
        if not missing:
            return
        specs = [self.shape.spec(self.counters.name_of(i), self.environment(i)) for i in missing]
        made = await self._insist(lambda: self.api.create(specs))
        unheard: list[str] = []
        for index, one in zip(missing, made, strict=True):
            if one.error == NAME_IN_USE:  # the answer to an earlier request was lost
                (found,) = await self.api.named([self.counters.name_of(index)])
                self.ledger.created(index, found.uuid)
                unheard.append(found.uuid)
                continue
            raise_unless_made(one)
            self.ledger.created(index, one.uuid)
        if unheard:  # the server may have ended between making and starting them
            await self._insist(lambda: self.api.start(unheard))

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer to a request, which is repeated where processes are killed meanwhile."""
        ends_s = time.monotonic() + RETRY_S
        while True:
            try:
                return await ask()
            except (LostError, WrongServerError):
                if not self.counters.faults or time.monotonic() > ends_s:
                    raise
                self.counters.lost += 1
                await asyncio.sleep(0.2)

    async def set_cooldown(self, indexes: Sequence[int], cooldown_ms: int) -> None:
        """Gives instances another cool-down from their next standby on."""
        value = self.shape.scale_to_zero(cooldown_ms)
        for first in range(0, len(indexes), PAGE):
            names = [self.counters.name_of(index) for index in indexes[first : first + PAGE]]
            await self.api.change(names, "scale_to_zero", value)

    async def settle(self) -> dict[str, int]:
        """Waits until no instance is awake; how many there are in each state."""
        ends_s = time.monotonic() + SETTLE_S + self.shape.cooldown_ms / 1000
        counts: dict[str, int] = {}
        while time.monotonic() < ends_s:
            try:
                counts = await self.api.counts()
            except LostError:
                if not self.counters.faults:
                    raise
            else:
                if BUSY_STATES.isdisjoint(counts):
                    self.audit.all_rest()
                    return counts
            await asyncio.sleep(0.1)
        raise TorporError(f"instances do not go to standby: {counts}")

    async def check_list(self, count: int) -> list[str]:
        """What is wrong in the server's own list of the first `count` instances."""
        expected = {
            self.counters.name_of(index): self.ledger.entry(index).uuid.hex()
            for index in range(count)
        }
        wrong: list[str] = []
        start = ""
        while True:
            page = await self.api.page(PAGE, start)
            for one in page[1 if start else 0 :]:  # the first is the last of the page before
                uuid = expected.pop(one.name, None)
                if uuid is None:
                    continue
                if one.uuid.replace("-", "") != uuid:
                    wrong.append(f"{one.name} is listed as {one.uuid}")
                if one.state != "standby" or one.stop_reason != SCALED_TO_ZERO:
                    wrong.append(f"{one.name} is {one.state}, stop reason {one.stop_reason}")
                if one.start_count < 1:
                    wrong.append(f"{one.name} was never started")
            if len(page) < PAGE:
                return [*wrong, *(f"{name} is not listed" for name in expected)]
            start = page[-1].uuid


async def for_each(
    indexes: Iterable[int], work: Callable[[int], Awaitable[object]], workers: int
) -> None:
    """Does `work` with each of them, `workers` at a time; the first error ends it."""
    rest = iter(indexes)

    async def worker() -> None:
        for index in rest:
            await work(index)

    with first_error():
        async with asyncio.TaskGroup() as tasks:
            for _ in range(workers):
                tasks.create_task(worker())


class first_error:  # noqa: N801 -- used like a function
    """Raises what ended a group of tasks by itself, and not as a group."""

    def __enter__(self) -> None:
        return

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, BaseExceptionGroup):
            first = error.exceptions[0]
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from error


def raise_unless_made(made: Made) -> None:
    """Raises WrongServerError if an instance was not made."""
    if made.status == "error":
        raise WrongServerError(f"{made.name or 'an instance'} was not made: {made.message}")

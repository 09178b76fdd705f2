"""Which answers of an instance that counts its requests are right.

An instance answers its own uuid and the number of requests that it has had. VM processes that are
killed take with them what was not committed yet: then, and only then, a lower count is right, down
to the last one that surely was durable. A request without an answer may have counted or not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal
from uuid import UUID

from torpor.bench.ledger import Ledger

Verdict = Literal["right", "fell back", "wrong"]
MARGIN_MS = 1000
"""An answer that was under way when its VM was killed may be read that much later."""


@dataclass(slots=True)
class Audit:
    """Judges the answers of all instances of a ledger."""

    ledger: Ledger
    now_ms: Callable[[], int] = field(default_factory=lambda: clock(time.time()))
    """Since the run began, which may have been in another process."""
    rested_ms: int = 0
    """When the server said last that all instances were in standby."""
    kills_ms: list[int] = field(default_factory=list)
    """When VM processes were killed."""
    answers: int = 0
    fell_back: int = 0
    wrong: list[str] = field(default_factory=list)

    def all_rest(self) -> None:
        """Every instance is in standby now: what they answered is durable."""
        self.rested_ms = self.now_ms()

    def vm_killed(self) -> None:
        """A VM process is about to be killed."""
        self.kills_ms.append(self.now_ms())

    def asks(self, index: int, *, counts: bool) -> None:
        """A request is about to be sent; `counts` if it makes the instance count one more."""
        old = self.ledger.entry(index)
        rested = old.at_ms <= self.rested_ms and not self._killed(old.at_ms, self.rested_ms)
        durable = old.answered if rested else old.durable
        asked = max(old.asked, old.answered) + 1 if counts else old.asked
        self.ledger.write(index, replace(old, durable=durable, asked=asked))

    def refused(self, index: int) -> None:
        """A request that counts was not carried out: the proxy said so."""
        old = self.ledger.entry(index)
        self.ledger.write(index, replace(old, asked=old.asked - 1))

    def answered(self, index: int, uuid: str, count: int, *, counted: bool) -> Verdict:
        """An answer came, to a request that `asks` was told of."""
        self.answers += 1
        old = self.ledger.entry(index)
        own = 1 if counted else 0
        exact, highest = old.answered + own, max(old.asked, old.answered)
        floor = old.durable + own if self._killed(old.at_ms, self.now_ms()) else exact
        if UUID(bytes=old.uuid) != _uuid(uuid) or not min(floor, exact) <= count <= highest:
            expected = f"{exact}" if (floor, highest) == (exact, exact) else f"{floor} to {highest}"
            self.wrong.append(
                f"instance {index} ({UUID(bytes=old.uuid)}) answered as {uuid} with {count} "
                f"instead of {expected}"
            )
            if UUID(bytes=old.uuid) == _uuid(uuid):
                self._note(index, count)  # so that one mistake is one finding
            return "wrong"
        self._note(index, count)
        if count < exact:
            self.fell_back += 1
            return "fell back"
        return "right"

    def _note(self, index: int, count: int) -> None:
        old = self.ledger.entry(index)
        durable = min(old.durable, count)
        known = replace(old, durable=durable, answered=count, asked=count, at_ms=self.now_ms())
        self.ledger.write(index, known)

    def _killed(self, since_ms: int, until_ms: int) -> bool:
        return any(since_ms - MARGIN_MS <= at <= until_ms for at in self.kills_ms)


def clock(began_s: float) -> Callable[[], int]:
    """Milliseconds since `began_s`, a time of time.time()."""
    return lambda: max(int((time.time() - began_s) * 1000), 0)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None

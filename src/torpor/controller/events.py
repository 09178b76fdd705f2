"""Who waits for what happens: waits for states, and subscribers of the audit stream."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Origin = Literal["api", "guest", "proxy", "scale-to-zero", "restart", "system", "autokill"]

MAX_SUBSCRIBERS = 64
QUEUE_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Event:
    """A change of state, or a start that failed."""

    type: Literal["vm.state_change", "vm.start_failed"]
    timestamp_ms: int
    uuid: str
    owner: str
    tags: tuple[str, ...]
    origin: Origin
    data: Mapping[str, Any]


class TooManySubscribersError(Exception):
    """There are MAX_SUBSCRIBERS already."""


@dataclass(slots=True, eq=False)
class Subscription:
    """One subscriber's events of one owner. A slow one loses events and is told how many."""

    owner: str
    queue: "asyncio.Queue[Event]" = field(default_factory=lambda: asyncio.Queue(QUEUE_LENGTH))
    dropped: int = 0

    def offer(self, event: Event) -> None:
        """Hands an event over, or counts it as lost."""
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped += 1

    def take_dropped(self) -> int:
        """How many were lost since the last call."""
        dropped, self.dropped = self.dropped, 0
        return dropped


class Events:
    """Everything that happens passes here. Belongs to the event loop."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)

    def publish(self, event: Event) -> None:
        """Tells subscribers and wakes all that wait for this object."""
        for subscription in self._subscriptions:
            if subscription.owner == event.owner:
                subscription.offer(event)
        self.notify(event.uuid)

    def subscribed(self) -> bool:
        """Whether anybody hears of events."""
        return bool(self._subscriptions)

    def notify(self, uuid: str) -> None:
        """Wakes all that wait for an object, without an event."""
        for waiter in self._waiters.get(uuid, ()):
            waiter.set()

    @contextmanager
    def subscribe(self, owner: str) -> Iterator[Subscription]:
        """A subscription for as long as the block lasts. Raises TooManySubscribersError."""
        if len(self._subscriptions) >= MAX_SUBSCRIBERS:
            raise TooManySubscribersError
        subscription = Subscription(owner)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    @contextmanager
    def watch(self, uuid: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something happens to an object; clear it, then look."""
        waiter = asyncio.Event()
        self._waiters[uuid].add(waiter)
        try:
            yield waiter
        finally:
            self._waiters[uuid].discard(waiter)
            if not self._waiters[uuid]:
                del self._waiters[uuid]


def now_ms() -> int:
    """The time of day, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000

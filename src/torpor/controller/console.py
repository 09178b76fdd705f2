"""The console output of running instances, on its way to the store."""

import asyncio
from dataclasses import dataclass

from torpor.store import Store, StoreError
from torpor.store.logs import LIMIT_BYTES

FLUSH_S = 0.5


@dataclass(slots=True)
class Tail:
    """Bytes of one instance that are not in the store yet."""

    start: int
    data: bytearray


class Console:
    """Collects output and writes it in groups, so that a talkative guest costs little."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tails: dict[int, Tail] = {}
        self._wake = asyncio.Event()
        self._flushing = asyncio.Lock()

    def output(self, instance_id: int, data: bytes) -> None:
        """Adds to an instance's log; of what is not written yet the newest LIMIT_BYTES are kept."""
        tail = self._tails.get(instance_id)
        if tail is None:
            tail = Tail(self._store.logs.bounds(instance_id)[1], bytearray())
            self._tails[instance_id] = tail
        tail.data += data
        excess = len(tail.data) - LIMIT_BYTES
        if excess > 0:
            del tail.data[:excess]
            tail.start += excess
        self._wake.set()

    def say(self, instance_id: int, what: object) -> None:
        """Adds a line of torpord's own to an instance's log."""
        self.output(instance_id, f"torpor: {what}\n".encode())

    def bounds(self, instance_id: int) -> tuple[int, int]:
        """The offsets of the first byte kept and behind the last one."""
        start, end = self._store.logs.bounds(instance_id)
        tail = self._tails.get(instance_id)
        if tail is None or not tail.data:
            return start, end
        newest = tail.start + len(tail.data)
        oldest = start if end == tail.start and end > start else tail.start
        return max(oldest, newest - LIMIT_BYTES), newest

    def read(self, instance_id: int, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`, as far as they are kept."""
        data = self._store.logs.read(instance_id, start, end)
        tail = self._tails.get(instance_id)
        if tail is None or end <= tail.start:
            return data
        data = data[: max(tail.start - start, 0)]
        return data + bytes(tail.data[max(start - tail.start, 0) : end - tail.start])

    async def flush(self) -> None:
        """Writes what is there to the store. If that fails it stays, and is bounded."""
        async with self._flushing:
            await self._flush()

    async def _flush(self) -> None:
        pieces = {
            instance_id: (tail.start, bytes(tail.data))
            for instance_id, tail in self._tails.items()
            if tail.data
        }
        if not pieces:
            return
        try:
            await self._store.logs.append(pieces)
        except StoreError:
            return  # a full disk: tried again with what comes next
        for instance_id, (start, data) in pieces.items():
            tail = self._tails.get(instance_id)
            if tail is None:
                continue
            written = start + len(data) - tail.start
            del tail.data[: max(written, 0)]
            tail.start += max(written, 0)
            if not tail.data:
                del self._tails[instance_id]

    def forget(self, instance_id: int) -> None:
        """Drops what is not written yet of an instance that is gone."""
        self._tails.pop(instance_id, None)

    async def run(self) -> None:
        """Flushes every FLUSH_S while there is output. Runs until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(FLUSH_S)
            await self.flush()

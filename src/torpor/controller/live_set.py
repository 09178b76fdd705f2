"""All instances that are live, their locks, and how what becomes of them is recorded and told."""

import asyncio
from collections import Counter
from weakref import WeakValueDictionary

import msgspec

from torpor.controller.errors import Code, ItemError, from_store
from torpor.controller.events import Event, Events, Origin, now_ms
from torpor.controller.live import Live
from torpor.controller.model import config_of, facts_of, with_documents
from torpor.store import InstanceRow, State, Store, StoreError

RETRY_S = 1.0
"""Between attempts to record what has happened already, while the disk is full."""


class LiveSet:
    """Belongs to the event loop."""

    def __init__(self, store: Store, events: Events) -> None:
        self._store = store
        self._events = events
        self._live: dict[int, Live] = {}
        self._by_uuid: dict[str, Live] = {}
        self._of_service: dict[int, dict[int, Live]] = {}
        self._of_owner: dict[int, dict[int, int]] = {}
        """MiB of those of each owner, by the instance's id."""
        self._memory_mb: Counter[int] = Counter()
        """The sum of that."""
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    def lock(self, instance_id: int) -> asyncio.Lock:
        """The lock of one instance; it exists for as long as somebody holds it."""
        lock = self._locks.get(instance_id)
        if lock is None:
            lock = self._locks[instance_id] = asyncio.Lock()
        return lock

    def is_claimed(self, instance_id: int) -> bool:
        """Whether anybody holds that lock or waits for it."""
        return instance_id in self._locks

    def get(self, instance_id: int) -> Live | None:
        """The live part of an instance, or None if its row is all there is."""
        return self._live.get(instance_id)

    def by_uuid(self, uuid: str) -> Live | None:
        """The same by the instance's uuid."""
        return self._by_uuid.get(uuid)

    def has(self, live: Live) -> bool:
        """Whether this is what is live of its instance now."""
        return self._live.get(live.row.id) is live

    def all(self) -> list[Live]:
        """Every instance that is live."""
        return list(self._live.values())

    def of_service(self, service_id: int) -> list[Live]:
        """Those of one service group."""
        return list(self._of_service.get(service_id, {}).values())

    def load_of(self, owner_id: int) -> tuple[int, int]:
        """How many of an owner's are live, and their memory in MiB."""
        return len(self._of_owner.get(owner_id, ())), self._memory_mb[owner_id]

    def state(self, row: InstanceRow) -> State:
        """The state of an instance now."""
        live = self._live.get(row.id)
        return row.state if live is None else live.state

    def current(self, row: InstanceRow) -> InstanceRow:
        """The row as it is in the store. Raises ItemError if it is gone."""
        found = self._store.instances.by_id(row.id)
        if found is None:
            raise ItemError(
                Code.NOT_FOUND, f"No instance with uuid '{row.uuid}'", uuid=row.uuid, name=row.name
            )
        return found

    # Coming and going ---------------------------------------------------------------------------

    def enter(self, live: Live) -> None:
        """An instance is live from now on."""
        self._live[live.row.id] = self._by_uuid[live.row.uuid] = live
        if live.row.service_id is not None:
            self._of_service.setdefault(live.row.service_id, {})[live.row.id] = live
        self._uncount(live.row)
        self._of_owner.setdefault(live.row.owner_id, {})[live.row.id] = live.row.memory_mb
        self._memory_mb[live.row.owner_id] += live.row.memory_mb

    def _uncount(self, row: InstanceRow) -> None:
        mine = self._of_owner.get(row.owner_id, {})
        self._memory_mb[row.owner_id] -= mine.pop(row.id, 0)
        if not mine:
            self._of_owner.pop(row.owner_id, None)
            self._memory_mb.pop(row.owner_id, None)

    def leave(self, row: InstanceRow) -> Live | None:
        """It is not; what it was."""
        live = self._live.pop(row.id, None)
        self._by_uuid.pop(row.uuid, None)
        self._uncount(row)
        self._leave_service(row)
        if live is not None:
            self.unpin(live)
        return live

    def move(self, live: Live, row: InstanceRow) -> None:
        """Its row is another one now, maybe of another service group."""
        self._leave_service(live.row)
        live.row = row
        self.enter(live)

    def _leave_service(self, row: InstanceRow) -> None:
        if row.service_id is not None:
            mine = self._of_service.get(row.service_id, {})
            mine.pop(row.id, None)
            if not mine:
                self._of_service.pop(row.service_id, None)

    def forget(self, live: Live) -> None:
        """It is not live any more, and whoever waits for it looks again."""
        live.settled.set()
        live.listener = None  # which refers to it: their memory would wait for the collector
        self.unpin(live)
        if self.has(live):
            self.leave(live.row)
        self._events.notify(live.row.uuid)

    def unpin(self, live: Live) -> None:
        """Its VM needs its template no more."""
        if live.base is not None:
            self._store.bases.unpin(live.base.id)
            live.base = None

    # Telling ------------------------------------------------------------------------------------

    def set(self, live: Live, state: State, origin: Origin) -> None:
        """It is in another state."""
        previous, live.state = live.state, state
        self.announce(live.row, previous, state, origin)

    def announce(self, row: InstanceRow, previous: State, state: State, origin: Origin) -> None:
        """Tells of a change of state."""
        if not self._events.subscribed():
            self._events.notify(row.uuid)
            return
        owner = self._store.owners.by_id(row.owner_id).uuid
        data = {"prev": previous, "new": state}
        self._events.publish(
            Event("vm.state_change", now_ms(), row.uuid, owner, row.tags, origin, data)
        )

    def start_failed(self, row: InstanceRow, origin: Origin, error: ItemError) -> None:
        """Tells of a start that failed."""
        owner = self._store.owners.by_id(row.owner_id).uuid
        data = {"state": row.state, "error": str(error)}
        self._events.publish(
            Event("vm.start_failed", now_ms(), row.uuid, owner, row.tags, origin, data)
        )

    # Recording ----------------------------------------------------------------------------------

    async def write(self, wanted: InstanceRow, row: InstanceRow) -> InstanceRow:
        """Writes a row, which was `row`. Raises ItemError or StoreError."""
        (written,) = await self._store.instances.update([wanted])
        if isinstance(written, StoreError):
            raise from_store(written, uuid=row.uuid, name=row.name) from written
        return written

    async def write_state(
        self, row: InstanceRow, state: State, reason: int, *, stop_code: int | None = None
    ) -> InstanceRow:
        """Records the state of an instance that is not live, and why it is in it."""
        facts = msgspec.structs.replace(
            facts_of(row.facts), stop_reason=reason, stop_code=stop_code, stopped_ms=now_ms()
        )
        written = await self.write(with_documents(row, config_of(row.config), facts, state), row)
        if state != row.state:
            self.announce(written, row.state, state, "api")
        return written

    async def write_eventually(self, live: Live, state: State) -> None:
        """Records what has happened already; a full disk can only delay it."""
        while True:
            wanted = with_documents(live.row, live.config, live.facts, state)
            try:
                live.row = await self.write(wanted, live.row)
            except StoreError:
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def discard_eventually(self, row: InstanceRow) -> None:
        """Removes the saved state of an instance that has stopped; likewise."""
        while True:
            try:
                await self._store.snapshots.discard(row.id)
            except StoreError:
                await asyncio.sleep(RETRY_S)
            else:
                return

"""Saved states: sealed when they are committed, checked before they are run."""

from torpor.controller.errors import Code, ItemError
from torpor.controller.events import now_ms
from torpor.controller.model import Config
from torpor.controller.sealing import Seal
from torpor.controller.vm import State
from torpor.store import InstanceRow, MissingError, Store


class SavedStates:
    """The store's snapshots with their seals."""

    def __init__(self, store: Store, seal: Seal) -> None:
        self._store = store
        self._seal = seal

    async def commit(self, row: InstanceRow, content: bytes, base: str = "") -> InstanceRow:
        """Makes `content` the next generation of `row`. Raises ConflictError, NoSpaceError."""
        mac = self._seal.make(self._owner(row), row.uuid, row.generation + 1, base, content)
        return await self._store.snapshots.commit(
            row, content, created_ms=now_ms(), base=base, mac=mac
        )

    async def read(self, row: InstanceRow) -> bytes:
        """The committed state of an instance. Raises MissingError or DamagedError."""
        snapshot = self._store.snapshots.find(row.id)
        if snapshot is None:
            raise MissingError(f"{row.kind} '{row.name}' has no saved state")
        content = await self._store.snapshots.read(snapshot)
        self._seal.check(
            snapshot.mac,
            self._owner(row),
            row.uuid,
            snapshot.generation,
            snapshot.base,
            content,
        )
        return content

    async def state(self, row: InstanceRow, config: Config) -> State | None:
        """What a VM of this instance begins with; None for a cold start."""
        template = None
        if config.template:
            source = self._store.instances.by_uuid(config.template)
            if source is None or source.kind != "template":
                raise ItemError(
                    Code.NOT_FOUND,
                    f"The template that instance '{row.name}' was made from is gone",
                    uuid=row.uuid,
                    name=row.name,
                )
            template = await self.read(source)
        delta = await self.read(row) if row.state == "standby" else None
        if template is None and delta is None:
            return None
        return State(template, delta, row.generation)

    def _owner(self, row: InstanceRow) -> str:
        return self._store.owners.by_id(row.owner_id).uuid

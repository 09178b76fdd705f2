"""Saved states: their digests are sealed when they are committed, and that is checked before they
are run; VM processes check their content against the digests."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from torpor import snapshot_format
from torpor.controller.errors import Code, ItemError
from torpor.controller.events import now_ms
from torpor.controller.model import Config
from torpor.controller.sealing import Seal
from torpor.controller.vm import Machine, Saved, State
from torpor.store import Base, Content, InstanceRow, MissingError, NewBase, Store

_configuration = msgspec.json.Encoder(order="sorted").encode


class SavedStates:
    """The store's snapshots and bases with their seals."""

    def __init__(self, store: Store, seal: Seal) -> None:
        self._store = store
        self._seal = seal

    async def commit(
        self,
        row: InstanceRow,
        saved: Saved,
        *,
        image: str,
        origin: str = "",
        wake_ms: int | None = None,
    ) -> InstanceRow:
        """Makes a state the next generation of `row`. Raises ConflictError, NoSpaceError.

        A whole state becomes a template that only this instance has, and nothing differs from it.
        """
        if saved.template is not None:
            return await self._commit(
                row, saved.content, saved.template, saved.warm, origin, wake_ms
            )
        template = await self.add_template(row.owner_id, saved.content, image)
        with self.pinned(template):
            return await self._commit(row, Content(b""), template, None, origin, wake_ms)

    async def _commit(
        self,
        row: InstanceRow,
        content: Content,
        template: Base,
        warm: Base | None,
        origin: str,
        wake_ms: int | None,
    ) -> InstanceRow:
        base = _named(template, warm, origin)
        owner, generation = self._owner(row.owner_id), row.generation + 1
        mac = self._seal.make(owner, row.uuid, generation, base, content.digest)
        return await self._store.snapshots.commit(
            row,
            content,
            created_ms=now_ms(),
            template=template,
            warm=warm,
            origin=origin,
            mac=mac,
            wake_ms=wake_ms,
        )

    async def read(self, row: InstanceRow) -> State:
        """The committed state of an instance. Raises MissingError or DamagedError."""
        state = await self._read(row)
        if state is None:
            raise MissingError(f"{row.kind} '{row.name}' has no saved state")
        return state

    async def _read(self, row: InstanceRow, *, resumes: bool = False) -> State | None:
        found = await self._store.snapshots.open(row.id)
        if found is None:
            return None
        snapshot, content = found
        template, warm = snapshot.template, snapshot.warm
        if template is None:
            raise MissingError(f"the saved state of {row.kind} '{row.name}' has no template")
        self._seal.check(
            snapshot.mac,
            self._owner(row.owner_id),
            row.uuid,
            snapshot.generation,
            _named(template, warm, snapshot.origin),
            snapshot.digest,
        )
        return State(
            template, content if content.size_bytes else None, warm, snapshot.origin, resumes
        )

    async def state(self, row: InstanceRow, config: Config) -> State | None:
        """What a VM of this instance begins with; None for a cold start, or a clone of what serves
        its configuration."""
        if row.state == "standby":
            own = await self._read(row, resumes=True)
            if own is not None:
                return own
        if not config.template:
            return None
        source = self._store.instances.by_uuid(config.template)
        if source is None or source.kind != "template":
            raise ItemError(
                Code.NOT_FOUND,
                f"The template that instance '{row.name}' was made from is gone",
                uuid=row.uuid,
                name=row.name,
            )
        state = await self.read(source)
        if state.delta is None:
            return state
        return State(state.template, state.delta, state.warm, _origin(source, state))

    # Bases --------------------------------------------------------------------------------------

    async def add_template(
        self,
        owner_id: int,
        content: Content,
        image: str,
        key: bytes | None = None,
        family: bytes | None = None,
    ) -> Base:
        """Records a template, for a configuration (and its family) or for one instance."""
        mac = self._base_mac(owner_id, "", content)
        return await self._store.bases.add(
            NewBase(owner_id, image, mac, now_ms(), key=key, family=family), content
        )

    def boot_seed(self, family: bytes) -> bytes:
        """What random numbers begin with in VMs of a family, until they are ready."""
        return self._seal.derive(b"boot seed\n" + family)

    async def add_warm(self, template: Base, content: Content) -> Base:
        """Records a warm base of a template."""
        mac = self._base_mac(template.owner_id, template.digest.hex(), content)
        new = NewBase(template.owner_id, template.image, mac, now_ms(), template_id=template.id)
        return await self._store.bases.add(new, content)

    async def open_base(self, base: Base) -> Content:
        """The file of a template or warm base, its seal checked. Raises StoreError.

        Whether the file has the digest that is sealed is for the VM process to see.
        """
        of = ""
        if base.template_id is not None:
            template = self._store.bases.by_id(base.template_id)
            of = "" if template is None else template.digest.hex()
        self._seal.check(base.mac, self._owner(base.owner_id), "", 0, f"base of {of}", base.digest)
        return await self._store.bases.open(base)

    def _base_mac(self, owner_id: int, template: str, content: Content) -> bytes:
        return self._seal.make(self._owner(owner_id), "", 0, f"base of {template}", content.digest)

    @contextmanager
    def pinned(self, base: Base) -> Iterator[None]:
        """Keeps a base that no snapshot refers to yet."""
        self._store.bases.pin(base.id)
        try:
            yield
        finally:
            self._store.bases.unpin(base.id)

    def _owner(self, owner_id: int) -> str:
        return self._store.owners.by_id(owner_id).uuid


def configuration_key(machine: Machine) -> bytes:
    """The digest of all that makes a template what it is: equal for VMs that may share one."""
    return hashlib.sha256(_configuration((*_but_environment(machine), dict(machine.env)))).digest()


def family_key(machine: Machine) -> bytes:
    """The same but for the environment: equal for VMs whose memory is much alike."""
    return hashlib.sha256(_configuration(_but_environment(machine))).digest()


def _but_environment(machine: Machine) -> tuple[object, ...]:
    return (
        snapshot_format.VERSION,  # a template of another one serves nobody
        machine.owner,
        machine.image_digest,
        machine.memory_mb,
        machine.argv,
        machine.workdir,
        machine.user,
    )


def _named(template: Base, warm: Base | None, origin: str) -> str:
    """What a state is sealed to besides its own content."""
    return f"{template.digest.hex()}+{'' if warm is None else warm.digest.hex()}+{origin}"


def _origin(source: InstanceRow, state: State) -> str:
    """Who a state was stored as that another instance begins with."""
    return state.origin or f"{source.uuid}/{source.generation}"

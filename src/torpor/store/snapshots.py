"""Generations: the last committed state of each instance, replaced only by a later one.

A commit names the generation that it was made from. If that is not the current one any more, or the
instance is gone, nothing is written: of two commits from one generation one wins, and the other
hears of it.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import apsw

from torpor.store.bases import Bases, drop_blob
from torpor.store.blobs import LOWER, UPPER, BlobFiles
from torpor.store.database import Database
from torpor.store.errors import ConflictError, DamagedError, StoreError
from torpor.store.instances import write_row
from torpor.store.records import Base, InstanceRow, Snapshot

_FIND = (
    "SELECT s.instance_id, s.generation, s.created_ms, s.template_id, s.warm_id, s.origin, s.mac, "
    "s.digest, s.size_bytes, b.tier FROM snapshots s LEFT JOIN blobs b ON b.digest = s.blob "
    "WHERE s.instance_id = ?"
)
_UNREFERENCED = (
    "DELETE FROM blobs WHERE NOT EXISTS"
    "(SELECT 1 FROM snapshots WHERE snapshots.blob = blobs.digest) "
    "AND NOT EXISTS(SELECT 1 FROM bases WHERE bases.blob = blobs.digest)"
)
INLINE_MAX_BYTES = 64 << 10
"""A larger snapshot becomes a file: beyond this a row costs SQLite more than a file system."""


class Snapshots:
    """The snapshots table with its blob files."""

    def __init__(self, database: Database, files: BlobFiles, bases: Bases) -> None:
        self._database = database
        self._files = files
        self._bases = bases

    async def commit(
        self,
        row: InstanceRow,
        content: bytes,
        *,
        created_ms: int,
        digest: bytes | None = None,
        template: Base | None = None,
        warm: Base | None = None,
        origin: str = "",
        mac: bytes = b"",
        wake_ms: int | None = None,
    ) -> InstanceRow:
        """Makes `content` the state of `row`, whose other columns are written along with it.

        `row.generation` is the generation that `content` was made from; the row that comes back
        has the next one. `digest` is the SHA-256 of `content`, for who has it already; `wake_ms` is
        when `due` names it. Raises ConflictError, and then nothing has changed.
        """
        if digest is None:
            digest = hashlib.sha256(content).digest()
        large = len(content) > INLINE_MAX_BYTES
        dropped: list[tuple[bytes, str]] = []

        def change(connection: apsw.Connection) -> InstanceRow:
            written = write_row(connection, row, commits=True)
            if isinstance(written, StoreError):
                raise ConflictError(
                    f"{row.kind} '{row.name}' is not at generation {row.generation} any more: "
                    "this snapshot of it is discarded"
                ) from written
            former = _take(connection, row.id)
            if large:
                connection.execute(
                    "INSERT INTO blobs VALUES(?,?,'upper',?) "
                    "ON CONFLICT DO UPDATE SET tier='upper', used_ms=excluded.used_ms",
                    (digest, len(content), created_ms),
                )
            connection.execute(
                "INSERT INTO snapshots VALUES(?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    row.id,
                    row.generation + 1,
                    created_ms,
                    None if template is None else template.id,
                    None if warm is None else warm.id,
                    origin,
                    mac,
                    digest,
                    len(content),
                    None if large else content,
                    digest if large else None,
                    wake_ms,
                ),
            )
            if template is not None and former[1] == template.id:
                former = (former[0], None)
            dropped.extend(self._drop_orphans(connection, former))
            return written

        with ExitStack() as held:
            if large:
                writing = self._files.put(content)
                await asyncio.to_thread(held.enter_context, writing)
            committed = await self._database.write(change)
        await self._remove_files(dropped)
        return committed

    def find(self, instance_id: int) -> Snapshot | None:
        """The committed state of an instance, without its content."""
        found = self._database.reader.execute(_FIND, (instance_id,)).fetchone()
        return None if found is None else self._snapshot(found)

    def due(self, now_ms: int, limit: int) -> list[int]:
        """Ids of instances whose committed state asks to be woken by now, the earliest first."""
        sql = (
            "SELECT s.instance_id FROM snapshots s JOIN instances i ON i.id = s.instance_id "
            "WHERE s.wake_ms <= ? AND i.state = 'standby' ORDER BY s.wake_ms LIMIT ?"
        )
        return [int(found) for (found,) in self._database.reader.execute(sql, (now_ms, limit))]

    def due_after(self, now_ms: int) -> int | None:
        """When the next committed state behind `now_ms` asks for a wake, of a VM that runs too."""
        sql = "SELECT min(wake_ms) FROM snapshots WHERE wake_ms > ?"
        found = self._database.reader.execute(sql, (now_ms,)).get
        return None if found is None else int(found)

    async def read(self, instance_id: int) -> tuple[Snapshot, bytes] | None:
        """The committed state of an instance with its content, its checksum verified.

        Raises MissingError or DamagedError.
        """
        sql = _FIND.replace("b.tier", "b.tier, s.inline")
        found = self._database.reader.execute(sql, (instance_id,)).fetchone()
        if found is None:
            return None
        snapshot, content = self._snapshot(found[:-1]), found[-1]
        if snapshot.tier is not None:
            content = await asyncio.to_thread(self._files.read, snapshot.digest, snapshot.tier)
        elif hashlib.sha256(content).digest() != snapshot.digest:
            raise DamagedError(
                f"generation {snapshot.generation} does not match its checksum: it will not be "
                "run; restore a backup"
            )
        return snapshot, content

    def _snapshot(self, found: Any) -> Snapshot:
        instance_id, generation, created_ms, template_id, warm_id, *rest = found
        template = None if template_id is None else self._bases.by_id(template_id)
        warm = None if warm_id is None else self._bases.by_id(warm_id)
        return Snapshot(instance_id, generation, created_ms, template, warm, *rest)

    async def discard(self, instance_id: int) -> None:
        """Removes an instance's committed state; its generations go on counting."""
        dropped = await self._database.write(
            lambda connection: self._drop_orphans(connection, _take(connection, instance_id))
        )
        await self._remove_files(dropped)

    def _drop_orphans(
        self, connection: apsw.Connection, former: tuple[bytes | None, int | None]
    ) -> list[tuple[bytes, str]]:
        """After a snapshot's row went: removes blobs and bases that only it needed."""
        blob, template_id = former
        digests = [] if blob is None else [blob]
        if template_id is not None:
            digests += self._bases.dropped_with(connection, template_id)
        return [(digest, tier) for digest in digests for tier in drop_blob(connection, digest)]

    async def cool(self, unused_since_ms: int, keep_bytes: int) -> int:
        """Moves blobs to the lower tier: those not used since, then the oldest over `keep_bytes`.

        Returns the number of blobs moved. Raises MissingError if there is no lower tier.
        """
        rows = list(
            self._database.reader.execute(
                "SELECT digest, size_bytes, used_ms FROM blobs WHERE tier='upper' ORDER BY used_ms"
            )
        )
        excess = sum(size for _, size, _ in rows) - keep_bytes
        moved = 0
        for digest, size, used_ms in rows:
            if used_ms >= unused_since_ms and excess <= 0:
                break
            moved += await self._move_down(digest)
            excess -= size
        return moved

    async def _move_down(self, digest: bytes) -> bool:
        def change(connection: apsw.Connection) -> bool:
            connection.execute("UPDATE blobs SET tier='lower' WHERE digest=?", (digest,))
            return connection.changes() == 1

        content = await asyncio.to_thread(self._files.read, digest, UPPER)
        with ExitStack() as held:
            await asyncio.to_thread(held.enter_context, self._files.put(content, LOWER))
            moved = await self._database.write(change)
        await self._remove_files([(digest, UPPER if moved else LOWER)])
        return moved

    def blob_bytes(self) -> dict[str, int]:
        """Of all files, templates and warm bases included, in each tier."""
        sums = self._database.reader.execute("SELECT tier, sum(size_bytes) FROM blobs GROUP BY 1")
        return {UPPER: 0, LOWER: 0, **{str(tier): int(size) for tier, size in sums}}

    async def drop_unreferenced(self, digests: Sequence[bytes]) -> None:
        """Removes those of these blobs that nothing refers to, with their files."""

        def change(connection: apsw.Connection) -> None:
            one = f"{_UNREFERENCED} AND digest = ?"
            connection.executemany(one, ((digest,) for digest in digests))

        await self._database.write(change)
        tiers = self._files.tiers()
        await self._remove_files([(digest, tier) for digest in digests for tier in tiers])

    async def collect(self) -> None:
        """The same for all blobs and all files, a 256th of them at a time."""
        for first in range(256):
            bounds = bytes([first]) + bytes(31), bytes([first]) + b"\xff" * 31

            def change(connection: apsw.Connection, bounds: tuple[bytes, bytes] = bounds) -> None:
                connection.execute(f"{_UNREFERENCED} AND digest BETWEEN ? AND ?", bounds)

            await self._database.write(change)
            for tier in self._files.tiers():
                found = await asyncio.to_thread(self._files.beginning_with, first, tier)
                await self._remove_files([(digest, tier) for digest in found])

    async def _remove_files(self, blobs: Sequence[tuple[bytes, str]]) -> None:
        """Removes files whose rows were dropped, unless a row refers to them again."""
        if not blobs:
            return

        def action(connection: apsw.Connection) -> None:
            sql = "SELECT 1 FROM blobs WHERE digest = ? AND tier = ?"
            for digest, tier in blobs:
                if connection.execute(sql, (digest, tier)).fetchone() is None:
                    self._files.remove(digest, tier)

        await self._database.between_commits(action)


def _take(connection: apsw.Connection, instance_id: int) -> tuple[bytes | None, int | None]:
    """Deletes an instance's snapshot row; its blob and its template."""
    found = connection.execute(
        "DELETE FROM snapshots WHERE instance_id = ? RETURNING blob, template_id", (instance_id,)
    ).fetchone()
    return found or (None, None)

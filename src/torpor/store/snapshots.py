"""Generations: the last committed state of each instance, replaced only by a later one.

A commit names the generation that it was made from. If that is not the current one any more, or the
instance is gone, nothing is written: of two commits from one generation one wins, and the other
hears of it.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import apsw

from torpor.store.blobs import LOWER, UPPER, BlobFiles
from torpor.store.database import Database
from torpor.store.errors import ConflictError, DamagedError, MissingError, StoreError
from torpor.store.instances import write_row
from torpor.store.records import InstanceRow, Snapshot

INLINE_MAX_BYTES = 64 << 10
"""A larger snapshot becomes a file: beyond this a row costs SQLite more than a file system."""


class Snapshots:
    """The snapshots table with its blob files."""

    def __init__(self, database: Database, files: BlobFiles) -> None:
        self._database = database
        self._files = files

    async def commit(
        self,
        row: InstanceRow,
        content: bytes,
        *,
        created_ms: int,
        base: str = "",
        mac: bytes = b"",
    ) -> InstanceRow:
        """Makes `content` the state of `row`, whose other columns are written along with it.

        `row.generation` is the generation that `content` was made from; the row that comes back
        has the next one. Raises ConflictError, and then nothing has changed.
        """
        digest = hashlib.sha256(content).digest()
        large = len(content) > INLINE_MAX_BYTES
        dropped: list[tuple[bytes, str]] = []

        def change(connection: apsw.Connection) -> InstanceRow:
            written = write_row(connection, row)
            connection.execute(
                "UPDATE instances SET generation=generation+1 WHERE id=? AND generation=?",
                (row.id, row.generation),
            )
            if isinstance(written, StoreError) or connection.changes() != 1:
                raise ConflictError(
                    f"{row.kind} '{row.name}' is not at generation {row.generation} any more: "
                    "this snapshot of it is discarded"
                )
            dropped.extend(_drop_snapshot(connection, row.id))
            if large:
                connection.execute(
                    "INSERT INTO blobs VALUES(?,?,'upper',?) "
                    "ON CONFLICT DO UPDATE SET tier='upper', used_ms=excluded.used_ms",
                    (digest, len(content), created_ms),
                )
            connection.execute(
                "INSERT INTO snapshots VALUES(?,?,?,?,?,?,?,?,?)",
                (
                    row.id,
                    row.generation + 1,
                    created_ms,
                    base,
                    mac,
                    digest,
                    len(content),
                    None if large else content,
                    digest if large else None,
                ),
            )
            return replace(written, generation=row.generation + 1)

        with ExitStack() as held:
            if large:
                writing = self._files.put(content)
                await asyncio.to_thread(held.enter_context, writing)
            committed = await self._database.write(change)
        await self._remove_files(dropped)
        return committed

    def find(self, instance_id: int) -> Snapshot | None:
        """The committed state of an instance, without its content."""
        found = self._database.reader.execute(
            "SELECT s.instance_id, s.generation, s.created_ms, s.base, s.mac, s.digest, "
            "s.size_bytes, b.tier FROM snapshots s LEFT JOIN blobs b ON b.digest = s.blob "
            "WHERE s.instance_id = ?",
            (instance_id,),
        ).fetchone()
        return None if found is None else Snapshot(*found)

    async def read(self, snapshot: Snapshot) -> bytes:
        """The content of a snapshot, from whichever tier it is in, its checksum verified.

        Raises MissingError if it was replaced meanwhile, DamagedError if it does not match.
        """
        if snapshot.tier is not None:
            return await asyncio.to_thread(self._files.read, snapshot.digest, snapshot.tier)
        found = self._database.reader.execute(
            "SELECT inline FROM snapshots WHERE instance_id = ? AND generation = ?",
            (snapshot.instance_id, snapshot.generation),
        ).fetchone()
        if found is None or found[0] is None:
            raise MissingError(f"generation {snapshot.generation} was replaced meanwhile")
        content: bytes = found[0]
        if hashlib.sha256(content).digest() != snapshot.digest:
            raise DamagedError(
                f"generation {snapshot.generation} does not match its checksum: it will not be "
                "run; restore a backup"
            )
        return content

    async def discard(self, instance_id: int) -> None:
        """Removes an instance's committed state; its generations go on counting."""
        dropped = await self._database.write(
            lambda connection: _drop_snapshot(connection, instance_id)
        )
        await self._remove_files(dropped)

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

    async def drop_unreferenced(self, digests: Sequence[bytes] | None = None) -> None:
        """Removes blobs, of these or of all, that no snapshot refers to, with their files."""
        unreferenced = (
            "DELETE FROM blobs WHERE NOT EXISTS"
            "(SELECT 1 FROM snapshots WHERE snapshots.blob = blobs.digest)"
        )

        def change(connection: apsw.Connection) -> None:
            if digests is None:
                connection.execute(unreferenced)
            else:
                one = f"{unreferenced} AND digest = ?"
                connection.executemany(one, ((digest,) for digest in digests))

        await self._database.write(change)
        for tier in self._files.tiers():
            found = digests or [digest for digest, _ in self._files.files(tier)]
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


def _drop_snapshot(connection: apsw.Connection, instance_id: int) -> list[tuple[bytes, str]]:
    """Deletes an instance's snapshot row; gives the blob that nothing refers to any more."""
    found = connection.execute(
        "DELETE FROM snapshots WHERE instance_id = ? RETURNING blob", (instance_id,)
    ).fetchone()
    if found is None or found[0] is None:
        return []
    digest: bytes = found[0]
    if connection.execute("SELECT 1 FROM snapshots WHERE blob = ?", (digest,)).fetchone():
        return []
    (tier,) = connection.execute(
        "DELETE FROM blobs WHERE digest = ? RETURNING tier", (digest,)
    ).fetchone() or (UPPER,)
    return [(digest, tier)]

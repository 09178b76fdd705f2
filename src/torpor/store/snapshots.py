"""Generations: the last committed state of each instance, replaced only by a later one.

A commit names the generation that it was made from. If that is not the current one any more, or the
instance is gone, nothing is written: of two commits from one generation one wins, and the other
hears of it.
"""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import apsw

from torpor.store.bases import Bases, drop_blob
from torpor.store.blobs import LOWER, UPPER, BlobFiles
from torpor.store.content import Content
from torpor.store.database import Database
from torpor.store.errors import ConflictError, DamagedError, MissingError, StoreError
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
# A template or warm base is used whenever VMs of it are, long after it was written.
_COLDEST = (
    "SELECT b.digest, b.size_bytes, max(b.used_ms, ifnull(a.used_ms, 0)) AS used FROM blobs b "
    "LEFT JOIN bases a ON a.blob = b.digest WHERE b.tier = 'upper' ORDER BY used LIMIT ? OFFSET ?"
)
COOLED_AT_ONCE = 1000
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
        content: Content,
        *,
        created_ms: int,
        template: Base | None = None,
        warm: Base | None = None,
        origin: str = "",
        mac: bytes = b"",
        wake_ms: int | None = None,
    ) -> InstanceRow:
        """Makes `content` the state of `row`, whose other columns are written along with it.

        `row.generation` is the generation that `content` was made from; the row that comes back
        has the next one; `wake_ms` is when `due` names it. Raises ConflictError, and then nothing
        has changed.
        """
        digest = content.digest
        inline = content.data if content.size_bytes <= INLINE_MAX_BYTES else None
        dropped: list[tuple[bytes, str]] = []

        def change(connection: apsw.Connection) -> InstanceRow:
            written = write_row(connection, row, commits=True)
            if isinstance(written, StoreError):
                raise ConflictError(
                    f"{row.kind} '{row.name}' is not at generation {row.generation} any more: "
                    "this snapshot of it is discarded"
                ) from written
            former = _take(connection, row.id)
            if inline is None:
                connection.execute(
                    "INSERT INTO blobs VALUES(?,?,'upper',?) "
                    "ON CONFLICT DO UPDATE SET tier='upper', used_ms=excluded.used_ms",
                    (digest, content.size_bytes, created_ms),
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
                    content.size_bytes,
                    inline,
                    digest if inline is None else None,
                    wake_ms,
                ),
            )
            if template is not None and former[1] == template.id:
                former = (former[0], None)
            dropped.extend(self._drop_orphans(connection, former))
            return written

        with ExitStack() as held:
            if inline is None:
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

    async def open(self, instance_id: int) -> tuple[Snapshot, Content] | None:
        """The committed state of an instance with its content, not checked yet.

        Raises MissingError.
        """
        sql = _FIND.replace("b.tier", "b.tier, s.inline")
        found = self._database.reader.execute(sql, (instance_id,)).fetchone()
        if found is None:
            return None
        snapshot, inline = self._snapshot(found[:-1]), found[-1]
        if snapshot.tier is not None:
            opening = asyncio.to_thread(self._files.open, snapshot.digest, snapshot.tier)
            return snapshot, await opening
        return snapshot, Content(inline, snapshot.digest)

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
        if LOWER not in self._files.tiers():
            raise MissingError("no lower tier is configured")
        excess = self.blob_bytes()[UPPER] - keep_bytes
        moved = passed_over = 0
        # What is moved is not found again: each round begins behind it.
        while rows := self._coldest(passed_over):
            for digest, size, used_ms in rows:
                if used_ms >= unused_since_ms and excess <= 0:
                    return moved
                try:
                    moved += await self._move_down(digest)
                except (MissingError, DamagedError):
                    passed_over += 1  # `torpor store check` says whose it is
                else:
                    excess -= size
        return moved

    def _coldest(self, after: int) -> list[Any]:
        return list(self._database.reader.execute(_COLDEST, (COOLED_AT_ONCE, after)))

    async def _move_down(self, digest: bytes) -> bool:
        def change(connection: apsw.Connection) -> bool:
            connection.execute("UPDATE blobs SET tier='lower' WHERE digest=?", (digest,))
            return connection.changes() == 1

        content = await asyncio.to_thread(self._files.open, digest, UPPER)
        await asyncio.to_thread(content.check)
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
                    # What was committed stays so: a file without a row goes after the next start.
                    with suppress(OSError):
                        self._files.remove(digest, tier)

        await self._database.between_commits(action)


def _take(connection: apsw.Connection, instance_id: int) -> tuple[bytes | None, int | None]:
    """Deletes an instance's snapshot row; its blob and its template."""
    found = connection.execute(
        "DELETE FROM snapshots WHERE instance_id = ? RETURNING blob, template_id", (instance_id,)
    ).fetchone()
    return found or (None, None)

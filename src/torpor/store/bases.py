"""What snapshots are differences to: templates and their warm bases, as files named by digest.

A base is kept for as long as a snapshot or another base needs it. A template that serves a
configuration (it has a key) is kept beyond that, until it is dropped for its age or for room.
"""

import asyncio
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import apsw

from torpor.store.blobs import UPPER, BlobFiles
from torpor.store.content import Content
from torpor.store.database import Database
from torpor.store.records import Base, NewBase

_COLUMNS = (
    "a.id, a.owner_id, a.blob, a.template_id, a.key, a.image, a.mac, b.size_bytes, b.tier, "
    "a.created_ms, a.used_ms FROM bases a JOIN blobs b ON b.digest = a.blob"
)
_NEEDED = (
    "EXISTS(SELECT 1 FROM snapshots WHERE template_id = a.id) "
    "OR EXISTS(SELECT 1 FROM snapshots WHERE warm_id = a.id) "
)
CACHED = 4096
"""Bases that are kept in memory; a row is a few hundred bytes."""


class Bases:
    """The bases table with its blob files."""

    def __init__(self, database: Database, files: BlobFiles) -> None:
        self._database = database
        self._files = files
        self._cache: dict[int, Base] = {}
        self._serving: dict[bytes, int] = {}
        """Ids of templates by what they serve, as far as they were asked for."""
        self._dropping: set[int] = set()
        self._pins: Counter[int] = Counter()

    async def add(self, new: NewBase, content: Content) -> Base:
        """Records a base. One that is there already, or serves the same key, comes back instead."""
        digest = content.digest

        def change(connection: apsw.Connection) -> Base:
            connection.execute(
                "INSERT INTO blobs VALUES(?,?,'upper',?) "
                "ON CONFLICT DO UPDATE SET tier='upper', used_ms=excluded.used_ms",
                (digest, content.size_bytes, new.created_ms),
            )
            connection.execute(
                "INSERT INTO bases(owner_id, blob, template_id, key, image, mac, created_ms, "
                "used_ms, family) VALUES(?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
                (
                    new.owner_id,
                    digest,
                    new.template_id,
                    new.key,
                    new.image,
                    new.mac,
                    new.created_ms,
                    new.created_ms,
                    new.family,
                ),
            )
            sql = f"SELECT {_COLUMNS} WHERE a.blob = ? OR a.key = ? ORDER BY a.blob <> ?"
            found: Any = connection.execute(sql, (digest, new.key, digest)).fetchone()
            return Base(*found)

        with ExitStack() as held:
            await asyncio.to_thread(held.enter_context, self._files.put(content))
            return await self._database.write(change)

    def by_id(self, base_id: int) -> Base | None:
        """The one of this id, or None."""
        cached = self._cache.get(base_id)
        if cached is None:
            cached = self._one("a.id = ?", base_id)
            if cached is not None:
                self._remember(cached)
        return cached

    def _remember(self, base: Base) -> None:
        if base.id in self._dropping:
            return
        if len(self._cache) >= CACHED:
            self._cache.clear()
            self._serving.clear()
        self._cache[base.id] = base
        if base.key is not None:
            self._serving[base.key] = base.id

    def _forget(self, base_id: int) -> None:
        base = self._cache.pop(base_id, None)
        if base is not None and base.key is not None:
            self._serving.pop(base.key, None)

    def by_key(self, key: bytes) -> Base | None:
        """The template that serves a configuration, or None."""
        known = self._cache.get(self._serving.get(key, -1))
        if known is None:
            known = self._one("a.key = ?", key)
            if known is not None:
                self._remember(known)
        return known

    def by_family(self, family: bytes) -> Base | None:
        """The newest template of a family, or None: older ones may be of an older kernel."""
        return self._one("a.family = ? ORDER BY a.id DESC LIMIT 1", family)

    def by_digest(self, digest: bytes) -> Base | None:
        """The one whose file has this digest, or None."""
        return self._one("a.blob = ?", digest)

    def newest_warm(self, template_id: int) -> Base | None:
        """The newest warm base of a template, or None."""
        return self._one("a.template_id = ? ORDER BY a.id DESC LIMIT 1", template_id)

    def _one(self, where: str, value: object) -> Base | None:
        sql = f"SELECT {_COLUMNS} WHERE {where}"
        found = self._database.reader.execute(sql, (value,)).fetchone()
        return None if found is None else Base(*found)

    async def open(self, base: Base) -> Content:
        """A base's file, not checked yet. Raises MissingError."""
        current = self._one("a.id = ?", base.id) or base
        return await asyncio.to_thread(self._files.open, base.digest, current.tier)

    async def touch(self, base_ids: Collection[int], used_ms: int) -> None:
        """Notes that bases were used."""

        def change(connection: apsw.Connection) -> None:
            sql = "UPDATE bases SET used_ms = ? WHERE id = ? AND used_ms < ?"
            connection.executemany(sql, ((used_ms, base_id, used_ms) for base_id in base_ids))

        await self._database.write(change)

    def unneeded(self) -> list[Base]:
        """Bases that no snapshot and no other base needs, those unused for longest first."""
        sql = (
            f"SELECT {_COLUMNS} WHERE NOT ({_NEEDED} "
            "OR EXISTS(SELECT 1 FROM bases w WHERE w.template_id = a.id)) ORDER BY a.used_ms"
        )
        return [Base(*found) for found in self._database.reader.execute(sql)]

    def pin(self, base_id: int) -> None:
        """Keeps a base, which a running VM began with, until it is unpinned as often."""
        self._pins[base_id] += 1

    def unpin(self, base_id: int) -> None:
        """Takes one pin back."""
        self._pins[base_id] -= 1
        if self._pins[base_id] <= 0:
            del self._pins[base_id]

    async def drop(self, base: Base) -> list[bytes]:
        """Removes a base unless something needs it; gives the digests that lost their base."""

        def change(connection: apsw.Connection) -> list[bytes]:
            return self._drop(connection, base.id)

        # Nobody is to find it in memory when it is gone from the disk.
        self._dropping.add(base.id)
        self._forget(base.id)
        try:
            return await self._database.write(change)
        finally:
            self._dropping.discard(base.id)

    async def drop_unneeded(self, template_id: int) -> list[bytes]:
        """Removes a template without a key, and its warm bases, if no snapshot needs them."""

        def change(connection: apsw.Connection) -> list[bytes]:
            return self.dropped_with(connection, template_id)

        return await self._database.write(change)

    def dropped_with(self, connection: apsw.Connection, template_id: int) -> list[bytes]:
        """The same within a change: the blobs that lost their base."""
        keyless = "SELECT 1 FROM bases WHERE id = ? AND key IS NULL"
        needed = "SELECT 1 FROM snapshots WHERE template_id = ?"
        if (
            connection.execute(keyless, (template_id,)).fetchone() is None
            or connection.execute(needed, (template_id,)).fetchone() is not None
            or template_id in self._pins
        ):
            return []
        digests: list[bytes] = []
        warm: list[Any] = connection.execute(
            "SELECT id FROM bases WHERE template_id = ?", (template_id,)
        ).fetchall()
        for (base_id,) in (*warm, (template_id,)):
            digests += self._drop(connection, base_id)
        return digests

    def _drop(self, connection: apsw.Connection, base_id: int) -> list[bytes]:
        if base_id in self._pins:
            return []
        sql = (
            f"DELETE FROM bases AS a WHERE id = ? AND NOT ({_NEEDED} "
            "OR EXISTS(SELECT 1 FROM bases w WHERE w.template_id = a.id)) RETURNING blob"
        )
        return [blob for (blob,) in connection.execute(sql, (base_id,))]


def drop_blob(connection: apsw.Connection, digest: bytes) -> list[str]:
    """Within a change: removes a blob's row unless something refers to it; the tier it was in."""
    for table in ("snapshots", "bases"):
        found = connection.execute(f"SELECT 1 FROM {table} WHERE blob = ?", (digest,))
        if found.fetchone() is not None:
            return []
    found = connection.execute("DELETE FROM blobs WHERE digest = ? RETURNING tier", (digest,))
    return [tier for (tier,) in found] or [UPPER]

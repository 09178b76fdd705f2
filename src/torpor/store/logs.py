"""What instances wrote to their console: the newest LIMIT_BYTES of each, by byte offset."""

from collections.abc import Mapping

import apsw

from torpor.store.database import Database

LIMIT_BYTES = 256 << 10
"""Kept of an instance's log; older bytes are dropped, and offsets go on counting."""


class Logs:
    """The logs table: pieces of at most LIMIT_BYTES that follow each other."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def bounds(self, instance_id: int) -> tuple[int, int]:
        """The offsets of the first byte kept and behind the last one."""
        found = self._database.reader.execute(
            "SELECT min(start), max(start + length(data)) FROM logs WHERE instance_id = ?",
            (instance_id,),
        ).fetchone()
        return (found[0] or 0, found[1] or 0) if found else (0, 0)

    def read(self, instance_id: int, start: int, end: int) -> bytes:
        """The bytes from offset `start` up to `end`, as far as they are kept."""
        rows = self._database.reader.execute(
            "SELECT start, data FROM logs WHERE instance_id = ? AND start < ? "
            "AND start + length(data) > ? ORDER BY start",
            (instance_id, end, start),
        )
        return b"".join(data[max(start - at, 0) : end - at] for at, data in rows)

    async def append(self, pieces: Mapping[int, tuple[int, bytes]]) -> None:
        """Adds to several logs at once: by instance, the offset and the bytes.

        A log whose instance is gone is passed over. Pieces of a log that went past its bound are
        dropped whole, so that a little more than the bound may be kept.
        """

        def change(connection: apsw.Connection) -> None:
            for instance_id, (start, data) in pieces.items():
                connection.execute(
                    "INSERT OR REPLACE INTO logs SELECT id, ?, ? FROM instances WHERE id = ?",
                    (start, data[-LIMIT_BYTES:], instance_id),
                )
                connection.execute(
                    "DELETE FROM logs WHERE instance_id = ? AND start + length(data) <= ?",
                    (instance_id, start + len(data) - LIMIT_BYTES),
                )

        await self._database.write(change)

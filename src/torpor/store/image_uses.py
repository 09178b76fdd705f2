"""Which images somebody here needs: instances with what waits for their stop, and templates."""

import asyncio

from torpor.store.database import Database

ROWS_AT_ONCE = 5_000
"""Looked at between two turns of the event loop: a few milliseconds."""
_IN_ROWS = (
    "SELECT 1 FROM instances WHERE id BETWEEN ? AND ? "
    "AND (instr(config, ?) > 0 OR instr(facts, ?) > 0) LIMIT 1"
)


class ImageUses:
    """Reads only. There is no index: it is asked seldom, and mostly the first rows answer it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def has(self, digest: str) -> bool:
        """Whether an image is needed. What is added meanwhile may be passed over."""
        reader = self._database.reader
        if reader.execute("SELECT 1 FROM bases WHERE image = ? LIMIT 1", (digest,)).fetchone():
            return True
        name = digest.encode()
        last = reader.execute("SELECT ifnull(max(id), 0) FROM instances").get
        for first in range(1, int(last) + 1, ROWS_AT_ONCE):
            bounds = (first, first + ROWS_AT_ONCE - 1)
            if reader.execute(_IN_ROWS, (*bounds, name, name)).fetchone():
                return True
            await asyncio.sleep(0)
        return False

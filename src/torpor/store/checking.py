"""`torpor store check`: every checksum and every reference, and what can be mended."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

from torpor.store.blobs import BlobFiles
from torpor.store.content import Content
from torpor.store.uuids import uuid_text

# Those whose state it is, or whose state is a difference to it.
_USERS = """
SELECT i.uuid FROM instances i JOIN snapshots s ON s.instance_id = i.id
LEFT JOIN bases t ON t.id = s.template_id LEFT JOIN bases w ON w.id = s.warm_id
WHERE s.blob = :blob OR t.blob = :blob OR w.blob = :blob ORDER BY i.id
"""
_DROP_WARM = "DELETE FROM bases WHERE template_id IN (SELECT id FROM bases WHERE blob = ?)"
WHOSE_MAX = 20


def check(database: Path, files: BlobFiles, *, repair: bool = False) -> Iterator[str]:
    """One line for each thing that is wrong, with what was done about it.

    Without `repair` nothing is changed, and torpord may be running. With it torpord must not be:
    wrong counters and tag indexes are made anew, files that nothing refers to are removed, and so
    are damaged templates that no instance needs: the next start makes them anew. Other damaged
    content cannot be mended; the line says whose it is.
    """
    flags = apsw.SQLITE_OPEN_READWRITE if repair else apsw.SQLITE_OPEN_READONLY
    connection = apsw.Connection(str(database), flags=flags)
    connection.set_busy_timeout(10_000)
    try:
        yield from _database(connection)
        yield from _inline(connection)
        yield from _blobs(connection, files, repair)
        yield from _derived(connection, repair)
        yield from _rubbish(connection, files, repair)
    except (apsw.CorruptError, apsw.NotADBError) as error:
        yield f"database: {error}: restore a backup"
    finally:
        connection.close()


def _database(connection: apsw.Connection) -> Iterator[str]:
    for (message,) in connection.execute("PRAGMA integrity_check"):
        if message != "ok":
            yield f"database: {message}: restore a backup"
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"database: row {row} of {table} refers to a row of {parent} that is not there"


def _inline(connection: apsw.Connection) -> Iterator[str]:
    for uuid, digest, content in connection.execute(
        "SELECT i.uuid, s.digest, s.inline FROM snapshots s JOIN instances i "
        "ON i.id = s.instance_id WHERE s.inline IS NOT NULL"
    ):
        if not Content(content, digest).is_whole():
            yield f"instance {uuid_text(uuid)}: its snapshot is damaged: restore a backup"


def _blobs(connection: apsw.Connection, files: BlobFiles, repair: bool) -> Iterator[str]:
    rows: list[Any] = connection.execute("SELECT digest, size_bytes, tier FROM blobs").fetchall()
    for digest, size_bytes, tier in rows:
        if tier not in files.tiers():
            yield f"blob {digest.hex()} is in a lower tier that is not configured: name it"
            continue
        path = files.path(digest, tier)
        if not path.exists():
            problem = "is missing"
        elif path.stat().st_size != size_bytes or not Content.opened(path, digest).is_whole():
            problem = "is damaged"
        else:
            continue
        users = [uuid_text(uuid) for (uuid,) in connection.execute(_USERS, {"blob": digest})]
        whose = ", ".join(users[:WHOSE_MAX]) + (", ..." if len(users) > WHOSE_MAX else "")
        if users:
            yield f"blob {digest.hex()} {problem}; used by {whose}: restore it from a backup"
            continue
        yield f"blob {digest.hex()} {problem}; no instance needs it{_mended(repair)}"
        if repair:
            with connection:
                connection.execute(_DROP_WARM, (digest,))
                connection.execute("DELETE FROM bases WHERE blob = ?", (digest,))
                connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))


def _derived(connection: apsw.Connection, repair: bool) -> Iterator[str]:
    yield from _derived_table(
        connection, repair, "the counters of instances are wrong", "totals",
        "SELECT owner_id, kind, state, count(*), sum(memory_mb), sum(vcpus) FROM instances "
        "GROUP BY owner_id, kind, state",
        kept="SELECT * FROM totals WHERE instances <> 0 OR memory_mb <> 0 OR vcpus <> 0",
    )  # fmt: skip
    yield from _derived_table(
        connection, repair, "the counters of service groups are wrong", "service_totals",
        "SELECT owner_id, count(*), sum(ports) FROM services GROUP BY owner_id",
        kept="SELECT * FROM service_totals WHERE services <> 0 OR ports <> 0",
    )  # fmt: skip
    yield from _derived_table(
        connection, repair, "the index of tags is wrong", "instance_tags",
        "SELECT i.owner_id, i.kind, t.value, i.created_ms, i.id FROM instances i, "
        "json_each(i.tags) t WHERE i.tags <> ''",
        kept="SELECT * FROM instance_tags",
    )  # fmt: skip


def _derived_table(
    connection: apsw.Connection, repair: bool, problem: str, table: str, real: str, *, kept: str
) -> Iterator[str]:
    """Compares what `table` keeps with the rows that it is derived from."""
    if connection.execute(f"{real} EXCEPT {kept}").fetchall() or (
        connection.execute(f"{kept} EXCEPT {real}").fetchall()
    ):
        yield problem + _mended(repair)
        if repair:
            with connection:
                connection.execute(f"DELETE FROM {table}")
                connection.execute(f"INSERT INTO {table} {real}")


def _rubbish(connection: apsw.Connection, files: BlobFiles, repair: bool) -> Iterator[str]:
    for tier in files.tiers():
        for digest, path in files.files(tier):
            found = connection.execute(
                "SELECT 1 FROM blobs WHERE digest = ? AND tier = ?", (digest, tier)
            )
            if found.fetchone() is None:
                yield f"nothing refers to {path}" + _mended(repair)
                if repair:
                    path.unlink()


def _mended(repair: bool) -> str:
    return ": mended" if repair else ": `torpor store check --repair` mends it"

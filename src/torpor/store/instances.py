"""Instances, templates and checkpoints: the same table, told apart by kind."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import apsw
from msgspec import Struct
from msgspec.structs import replace

from torpor.store.database import Database
from torpor.store.errors import (
    ConflictError,
    InUseError,
    MissingError,
    NameTakenError,
    QuotaError,
    StoreError,
)
from torpor.store.image_uses import ROWS_AT_ONCE
from torpor.store.records import InstanceRow, Kind, NewInstance, State, Total
from torpor.store.services import insert_service
from torpor.store.uuids import uuid_bounds, uuid_bytes, uuid_text

_COLUMNS = (
    "i.id, i.uuid, i.owner_id, i.kind, i.name, i.state, i.revision, i.generation, i.memory_mb, "
    "i.vcpus, i.service_id, i.created_ms, i.tags, i.config, i.facts, i.kill_ms"
)


class Page(Struct, frozen=True):
    """Which part of a list is wanted. All conditions must hold."""

    start: str = ""
    """The uuid of the first one wanted, or a creation time (ISO 8601); empty for the beginning."""
    count: int = 0
    """How many at most; 0 for all."""
    descending: bool = False
    tags: tuple[str, ...] = ()
    state: str = ""
    here: tuple[int, ...] = ()
    """Ids that count as being in `state`, whatever their row says."""
    elsewhere: tuple[int, ...] = ()
    """Ids that do not."""


class Instances:
    """The instances table. Reads are from the thread of the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self,
        owner_id: int,
        new: Sequence[NewInstance],
        quota: int | None = None,
        service_quota: int | None = None,
    ) -> list[InstanceRow | StoreError]:
        """Records new instances; what could not be recorded has its error in its place.

        `quota` is how many of that kind the owner may have, templates and checkpoints aside, and
        `service_quota` how many service groups.
        """

        def change(connection: apsw.Connection) -> list[InstanceRow | StoreError]:
            room = None if quota is None else quota - _instances(connection, owner_id)
            answers: list[InstanceRow | StoreError] = []
            services: dict[str, int] = {}
            for item in new:
                if room is not None and room <= 0:
                    answers.append(QuotaError(f"Quota of {quota} instances exceeded"))
                    continue
                answer = _insert_attached(connection, owner_id, item, service_quota, services)
                if room is not None and isinstance(answer, InstanceRow):
                    room -= 1
                answers.append(answer)
            return answers

        return await self._database.write(change)

    def find(self, owner_id: int, kind: Kind, *, uuid: str = "", name: str = "") -> InstanceRow:
        """The one of this uuid or name. Raises MissingError."""
        if uuid:
            where, value = "i.uuid = ?", uuid_bytes(uuid)
            sql = f"SELECT {_COLUMNS} FROM instances i WHERE {where} AND owner_id = ? AND kind = ?"
            found = self._database.reader.execute(sql, (value, owner_id, kind)).fetchone()
        else:
            sql = f"SELECT {_COLUMNS} FROM instances i WHERE owner_id = ? AND kind = ? AND name = ?"
            found = self._database.reader.execute(sql, (owner_id, kind, name)).fetchone()
        if found is None:
            what = f"uuid '{uuid}'" if uuid else f"name '{name}'"
            raise MissingError(f"No {kind} with {what}")
        return _row(found)

    def matching(self, owner_id: int, kind: Kind, text: str) -> list[tuple[str, str]]:
        """Uuid and name of the one of this name, else of up to two whose uuid begins so."""
        sql = "SELECT uuid, name FROM instances WHERE owner_id = ? AND kind = ? AND name = ?"
        found: list[Any] = self._database.reader.execute(sql, (owner_id, kind, text)).fetchall()
        bounds = uuid_bounds(text)
        if not found and bounds is not None:
            sql = (
                "SELECT uuid, name FROM instances "
                "WHERE uuid BETWEEN ? AND ? AND owner_id = ? AND kind = ? LIMIT 2"
            )
            found = self._database.reader.execute(sql, (*bounds, owner_id, kind)).fetchall()
        return [(uuid_text(uuid), name) for uuid, name in found]

    def by_id(self, instance_id: int) -> InstanceRow | None:
        """The one of this id, or None if it is gone."""
        sql = f"SELECT {_COLUMNS} FROM instances i WHERE i.id = ?"
        found = self._database.reader.execute(sql, (instance_id,)).fetchone()
        return None if found is None else _row(found)

    def by_uuid(self, uuid: str) -> InstanceRow | None:
        """The one of this uuid, whoever owns it, or None."""
        sql = f"SELECT {_COLUMNS} FROM instances i WHERE i.uuid = ?"
        found = self._database.reader.execute(sql, (uuid_bytes(uuid),)).fetchone()
        return None if found is None else _row(found)

    def page(self, owner_id: int, kind: Kind, page: Page) -> list[InstanceRow]:
        """A part of the list, in the order of creation. A `start` that is gone gives none."""
        conditions: list[str] = []
        values: list[object] = []
        if page.tags:
            source = "instance_tags o CROSS JOIN instances i ON i.id = o.instance_id"
            identity = "o.instance_id"
            conditions += ["o.owner_id = ?", "o.kind = ?", "o.tag = ?"]
            values += [owner_id, kind, page.tags[0]]
            for tag in page.tags[1:]:
                conditions.append(
                    "EXISTS(SELECT 1 FROM instance_tags t WHERE t.owner_id = o.owner_id AND "
                    "t.kind = o.kind AND t.tag = ? AND t.created_ms = o.created_ms "
                    "AND t.instance_id = o.instance_id)"
                )
                values.append(tag)
        else:
            source, identity = "instances o", "o.id"
            conditions += ["o.owner_id = ?", "o.kind = ?"]
            values += [owner_id, kind]
        if page.state:
            column = "i.state" if page.tags else "o.state"
            if page.here:
                ids = "SELECT value FROM json_each(?)"
                conditions.append(f"({column} = ? OR {identity} IN ({ids}))")
                values += [page.state, json.dumps(page.here)]
            else:
                conditions.append(f"{column} = ?")
                values.append(page.state)
            if page.elsewhere:
                conditions.append(f"{identity} NOT IN (SELECT value FROM json_each(?))")
                values.append(json.dumps(page.elsewhere))
        compare = "<=" if page.descending else ">="
        if page.start:
            position = self._position(page.start, page.descending)
            if position is None:
                return []
            conditions.append(f"(o.created_ms, {identity}) {compare} (?, ?)")
            values += position
        direction = "DESC" if page.descending else "ASC"
        sql = (
            f"SELECT {_COLUMNS if page.tags else _COLUMNS.replace('i.', 'o.')} FROM {source} "
            f"WHERE {' AND '.join(conditions)} "
            f"ORDER BY o.created_ms {direction}, {identity} {direction} LIMIT ?"
        )
        values.append(page.count or -1)
        return [_row(found) for found in self._database.reader.execute(sql, values)]

    def _position(self, start: str, descending: bool) -> tuple[int, int] | None:
        try:
            uuid = uuid_bytes(start)
        except MissingError:
            try:
                moment = datetime.fromisoformat(start)
            except ValueError as error:
                raise MissingError(
                    f"'from' is '{start}': must be a uuid or an ISO 8601 time"
                ) from error
            return int(moment.timestamp() * 1000), (2**62 if descending else 0)
        sql = "SELECT created_ms, id FROM instances WHERE uuid = ?"
        found = self._database.reader.execute(sql, (uuid,)).fetchone()
        return found and (found[0], found[1])

    def in_motion(self) -> list[InstanceRow]:
        """All that were starting, running or about to stop when they were last written."""
        sql = (
            f"SELECT {_COLUMNS} FROM instances i "
            "WHERE state IN ('starting', 'running', 'draining', 'stopping') ORDER BY i.id"
        )
        return [_row(found) for found in self._database.reader.execute(sql)]

    def to_kill(self, now_ms: int, limit: int) -> list[InstanceRow]:
        """Those that are to be deleted by now, the earliest first."""
        sql = f"SELECT {_COLUMNS} FROM instances i WHERE kill_ms <= ? ORDER BY kill_ms LIMIT ?"
        return [_row(found) for found in self._database.reader.execute(sql, (now_ms, limit))]

    def of_service(
        self, service_id: int, state: State | None = None, limit: int = -1
    ) -> list[InstanceRow]:
        """Instances of a service group in the order of creation, or of those in a state."""
        where = "service_id = ?" if state is None else "service_id = ? AND state = ?"
        values: list[object] = [service_id] if state is None else [service_id, state]
        sql = f"SELECT {_COLUMNS} FROM instances i WHERE {where} ORDER BY i.id LIMIT ?"
        rows = self._database.reader.execute(sql, [*values, limit])
        return [_row(found) for found in rows]

    async def mentioning(self, owner_id: int, text: str) -> AsyncIterator[tuple[str, bytes]]:
        """Names and configurations of the owner's instances with this text in it, oldest first.

        There is no index: it is asked seldom, and reads all rows, between turns of the event loop.
        What is added meanwhile may be passed over.
        """
        reader = self._database.reader
        last = reader.execute("SELECT ifnull(max(id), 0) FROM instances").get
        sql = (
            "SELECT name, config FROM instances WHERE id BETWEEN ? AND ? AND owner_id = ? "
            "AND kind = 'instance' AND instr(config, ?) > 0 ORDER BY id"
        )
        for first in range(1, int(last) + 1, ROWS_AT_ONCE):
            bounds = (first, first + ROWS_AT_ONCE - 1)
            for name, config in list(reader.execute(sql, (*bounds, owner_id, text.encode()))):
                yield str(name), bytes(config)
            await asyncio.sleep(0)

    def totals(self, owner_id: int) -> list[Total]:
        """How much the owner has, by kind and state; from counters, whatever the number."""
        sql = (
            "SELECT kind, state, instances, memory_mb, vcpus FROM totals "
            "WHERE owner_id = ? AND instances > 0"
        )
        rows = self._database.reader.execute(sql, (owner_id,))
        return [Total(*found) for found in rows]

    def totals_besides(self, owner_id: int, ids: Sequence[int]) -> list[Total]:
        """The same without the instances of some ids."""
        # CROSS JOIN: it begins with the ids. By itself SQLite goes through an index in the order of
        # the groups, that is through all instances.
        sql = (
            "SELECT i.kind, i.state, count(*), sum(i.memory_mb), sum(i.vcpus) "
            "FROM json_each(?) e CROSS JOIN instances i ON i.id = e.value "
            "WHERE i.owner_id = ? GROUP BY i.kind, i.state"
        )
        reader = self._database.reader
        # One transaction: nothing is committed between the two.
        with reader:
            all_ = self.totals(owner_id)
            besides = {
                (kind, state): figures
                for kind, state, *figures in reader.execute(sql, (json.dumps(ids), owner_id))
            }
        less = [(total, besides.get((total.kind, total.state), (0, 0, 0))) for total in all_]
        return [
            Total(
                total.kind,
                total.state,
                total.instances - count,
                total.memory_mb - memory_mb,
                total.vcpus - vcpus,
            )
            for total, (count, memory_mb, vcpus) in less
        ]

    async def update(self, rows: Sequence[InstanceRow]) -> list[InstanceRow | StoreError]:
        """Writes rows back as given, each unless it changed since it was read.

        What was written comes back with its new revision; uuid, owner, creation time and
        generation are never changed here.
        """

        def change(connection: apsw.Connection) -> list[InstanceRow | StoreError]:
            return [write_row(connection, row) for row in rows]

        return await self._database.write(change)

    async def remove(self, rows: Sequence[InstanceRow]) -> list[StoreError | None]:
        """Removes instances with their tags, logs and snapshots, unless they changed."""

        def change(connection: apsw.Connection) -> list[StoreError | None]:
            answers: list[StoreError | None] = []
            for row in rows:
                connection.execute(
                    "DELETE FROM instances WHERE id = ? AND revision = ?", (row.id, row.revision)
                )
                gone = connection.changes() == 1
                answers.append(None if gone else ConflictError(f"{row.name} changed meanwhile"))
            return answers

        return await self._database.write(change)


def _instances(connection: apsw.Connection, owner_id: int) -> int:
    sql = "SELECT total(instances) FROM totals WHERE owner_id = ? AND kind = 'instance'"
    return int(connection.execute(sql, (owner_id,)).get)


def _insert_attached(
    connection: apsw.Connection,
    owner_id: int,
    new: NewInstance,
    quota: int | None,
    services: dict[str, int],
) -> InstanceRow | StoreError:
    """Records an instance with its new service group, if it has one: both or neither.

    `services` are the ids of those that were recorded in this change, by uuid.
    """
    if new.service is None:
        return _insert(connection, owner_id, new)
    known = services.get(new.service.uuid)
    if known is not None:
        return _insert(connection, owner_id, replace(new, service_id=known))
    try:
        with connection:
            service = insert_service(connection, owner_id, new.service, quota)
            row = _insert(connection, owner_id, replace(new, service_id=service.id))
            if isinstance(row, StoreError):
                raise row
    except StoreError as error:
        return error
    services[new.service.uuid] = service.id
    return row


def _insert(
    connection: apsw.Connection, owner_id: int, new: NewInstance
) -> InstanceRow | StoreError:
    try:
        connection.execute(
            "INSERT INTO instances(uuid, owner_id, kind, name, state, memory_mb, vcpus, "
            "service_id, created_ms, tags, config, facts, kill_ms) "
            "VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                uuid_bytes(new.uuid),
                owner_id,
                new.kind,
                new.name,
                new.state,
                new.memory_mb,
                new.vcpus,
                new.service_id,
                new.created_ms,
                json.dumps(new.tags) if new.tags else "",
                new.config,
                new.facts,
                new.kill_ms,
            ),
        )
    except apsw.ConstraintError as error:
        return _constraint(error, new.kind, new.name)
    row = InstanceRow(
        id=connection.last_insert_rowid(),
        uuid=new.uuid,
        owner_id=owner_id,
        kind=new.kind,
        name=new.name,
        state=new.state,
        revision=1,
        generation=0,
        memory_mb=new.memory_mb,
        vcpus=new.vcpus,
        service_id=new.service_id,
        created_ms=new.created_ms,
        tags=new.tags,
        config=new.config,
        facts=new.facts,
        kill_ms=new.kill_ms,
    )
    _index_tags(connection, row)
    return row


def write_row(
    connection: apsw.Connection, row: InstanceRow, *, commits: bool = False
) -> InstanceRow | StoreError:
    """Within a change: writes a row back unless it changed since it was read.

    With `commits` it gets the next generation, unless it is at another one than `row` says.
    """
    tags = json.dumps(row.tags) if row.tags else ""
    which = (row.id, row.revision, row.generation if commits else None)
    service, kill_ms = row.service_id, row.kill_ms
    shape = (row.kind, row.name, row.memory_mb, row.vcpus, service, kill_ms, tags)
    changes = (row.state, row.config, row.facts, commits)
    try:
        connection.execute(_UPDATE, (*changes, *which, *shape))
        if connection.changes() != 1:
            connection.execute(_RESHAPE, (*changes, *shape, *which))
            if connection.changes() != 1:
                return ConflictError(f"{row.kind} '{row.name}' changed meanwhile, or is gone")
            connection.execute("DELETE FROM instance_tags WHERE instance_id = ?", (row.id,))
            _index_tags(connection, row)
    except apsw.ConstraintError as error:
        return _constraint(error, row.kind, row.name)
    return replace(row, revision=row.revision + 1, generation=row.generation + commits)


# What is set, changed or not, has its indexes written anew, and most columns hardly ever change.
_CHANGES = "state=?, config=?, facts=?, generation=generation+?, revision=revision+1"
_WHICH = "id=? AND revision=? AND generation=ifnull(?, generation)"
_UPDATE = (
    f"UPDATE instances SET {_CHANGES} WHERE {_WHICH} AND kind=? AND name=? AND memory_mb=? "
    "AND vcpus=? AND service_id IS ? AND kill_ms IS ? AND tags=?"
)
_RESHAPE = (
    f"UPDATE instances SET {_CHANGES}, kind=?, name=?, memory_mb=?, vcpus=?, service_id=?, "
    f"kill_ms=?, tags=? WHERE {_WHICH}"
)


def _index_tags(connection: apsw.Connection, row: InstanceRow) -> None:
    connection.executemany(
        "INSERT INTO instance_tags VALUES(?,?,?,?,?)",
        ((row.owner_id, row.kind, tag, row.created_ms, row.id) for tag in row.tags),
    )


def _constraint(error: apsw.ConstraintError, kind: str, name: str) -> StoreError:
    if getattr(error, "extendedresult", 0) == apsw.SQLITE_CONSTRAINT_FOREIGNKEY:
        return InUseError(f"{kind} '{name}': what it refers to is gone")
    return NameTakenError(f"{_A[kind]} with the name '{name}' already exists")


_A = {"instance": "An instance", "template": "A template", "checkpoint": "A checkpoint"}


def _row(found: Any) -> InstanceRow:
    row = list(found)
    row[1] = uuid_text(row[1])
    row[12] = tuple(json.loads(row[12])) if row[12] else ()
    return InstanceRow(*row)

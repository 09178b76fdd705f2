"""Service groups and the domains that lead to them."""

from typing import Any, Literal
from uuid import UUID

import apsw
from msgspec.structs import replace

from torpor.store.database import Database
from torpor.store.errors import ConflictError, InUseError, MissingError, NameTakenError, QuotaError
from torpor.store.records import NewService, PortClaim, ServiceRow
from torpor.store.uuids import uuid_bounds, uuid_text

# No host name has a space in it.
_COLUMNS = (
    "s.id, s.uuid, s.owner_id, s.name, s.revision, s.created_ms, s.document, s.kill_ms, "
    "(SELECT group_concat(h.fqdn, ' ' ORDER BY h.fqdn) FROM domains h "
    "WHERE h.service_id = s.id AND h.fqdn NOT GLOB ':*')"
)

# How ports stand among the domains: `:PORT` where it is one group's alone, else `:PORT/ID` for
# each that has it. What begins with ':PORT/' lies before ':PORT0'.
_ALONE, _SHARED = "d.fqdn = ?1", "d.fqdn > ?1 || '/' AND d.fqdn < ?1 || '0'"


class Services:
    """The services and domains tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, owner_id: int, new: NewService, quota: int | None = None) -> ServiceRow:
        """Records a service group.

        Raises NameTakenError (also for a domain), InUseError for a port, or QuotaError.
        """

        return await self._database.write(
            lambda connection: insert_service(connection, owner_id, new, quota)
        )

    def find(self, owner_id: int, *, uuid: str = "", name: str = "") -> ServiceRow:
        """The one of this uuid or name. Raises MissingError."""
        value: object
        if uuid:
            try:
                where, value = "s.uuid = ?", UUID(uuid).bytes
            except ValueError as error:
                raise MissingError(f"Invalid uuid '{uuid}'") from error
        else:
            where, value = "s.name = ?", name
        sql = f"SELECT {_COLUMNS} FROM services s WHERE s.owner_id = ? AND {where}"
        found = self._database.reader.execute(sql, (owner_id, value)).fetchone()
        if found is None:
            what = f"uuid '{uuid}'" if uuid else f"name '{name}'"
            raise MissingError(f"No service group with {what}")
        return self._row(found)

    def matching(self, owner_id: int, text: str) -> list[tuple[str, str]]:
        """Uuid and name of the one of this name, else of up to two whose uuid begins so."""
        sql = "SELECT uuid, name FROM services WHERE owner_id = ? AND name = ?"
        found: list[Any] = self._database.reader.execute(sql, (owner_id, text)).fetchall()
        bounds = uuid_bounds(text)
        if not found and bounds is not None:
            sql = (
                "SELECT uuid, name FROM services "
                "WHERE uuid BETWEEN ? AND ? AND owner_id = ? LIMIT 2"
            )
            found = self._database.reader.execute(sql, (*bounds, owner_id)).fetchall()
        return [(uuid_text(uuid), name) for uuid, name in found]

    def by_id(self, service_id: int) -> ServiceRow | None:
        """The one of this id, or None."""
        sql = f"SELECT {_COLUMNS} FROM services s WHERE s.id = ?"
        found = self._database.reader.execute(sql, (service_id,)).fetchone()
        return None if found is None else self._row(found)

    def by_domain(self, fqdn: str) -> ServiceRow | None:
        """The one that a host name leads to, whoever owns it, or None."""
        sql = (
            f"SELECT {_COLUMNS} FROM domains d JOIN services s ON s.id = d.service_id "
            "WHERE d.fqdn = ?"
        )
        found = self._database.reader.execute(sql, (fqdn,)).fetchone()
        return None if found is None else self._row(found)

    def page(
        self, owner_id: int, *, start: str = "", count: int = 0, descending: bool = False
    ) -> list[ServiceRow]:
        """A part of the owner's service groups in the order of creation."""
        conditions, values = "s.owner_id = ?", [owner_id]
        if start:
            try:
                first = self.find(owner_id, uuid=start)
            except MissingError:
                return []
            compare = "<=" if descending else ">="
            conditions += f" AND (s.created_ms, s.id) {compare} (?, ?)"
            values += [first.created_ms, first.id]
        direction = "DESC" if descending else "ASC"
        sql = (
            f"SELECT {_COLUMNS} FROM services s WHERE {conditions} "
            f"ORDER BY s.created_ms {direction}, s.id {direction} LIMIT ?"
        )
        rows = self._database.reader.execute(sql, [*values, count or -1])
        return [self._row(found) for found in rows]

    def totals(self, owner_id: int) -> tuple[int, int]:
        """How many service groups and how many ports the owner has."""
        found = self._database.reader.execute(
            "SELECT services, ports FROM service_totals WHERE owner_id = ?", (owner_id,)
        ).fetchone()
        return (int(found[0]), int(found[1])) if found else (0, 0)

    def listened(self) -> list[int]:
        """The ports other than 80 and 443 that services have."""
        sql = "SELECT fqdn FROM domains WHERE fqdn >= ? AND fqdn < ';' ORDER BY fqdn LIMIT 1"
        ports: list[int] = []
        after = ":"
        while True:
            found = self._database.reader.execute(sql, (after,)).fetchone()
            if found is None:
                return ports
            ports.append(int(found[0][1:].partition("/")[0]))
            # A million groups may share one.
            after = f":{ports[-1]}0"

    def holding(self, port: int) -> Literal["alone", "shared"] | None:
        """How service groups have a port other than 80 and 443, if any has it."""
        sql = f"SELECT fqdn FROM domains d WHERE {_ALONE} OR {_SHARED} LIMIT 1"
        host = PortClaim(port, alone=True).host
        found = self._database.reader.execute(sql, (host,)).fetchone()
        if found is None:
            return None
        return "alone" if found[0] == host else "shared"

    async def update(
        self, row: ServiceRow, ports: int, claims: tuple[PortClaim, ...]
    ) -> ServiceRow:
        """Writes a row back with its domains and ports.

        Raises ConflictError, NameTakenError or InUseError.
        """

        return await self._database.write(
            lambda connection: write_service(connection, row, ports, claims)
        )

    def to_kill(self, now_ms: int, limit: int) -> list[ServiceRow]:
        """Those that are to be deleted by now if they have no instances, the earliest first."""
        sql = f"SELECT {_COLUMNS} FROM services s WHERE s.kill_ms <= ? ORDER BY s.kill_ms LIMIT ?"
        rows = self._database.reader.execute(sql, (now_ms, limit)).fetchall()
        return [self._row(found) for found in rows]

    async def set_kill(self, service_id: int, kill_ms: int | None) -> None:
        """Notes when one is to be deleted by itself."""
        sql = "UPDATE services SET kill_ms = ? WHERE id = ?"
        await self._database.write(
            lambda connection: connection.execute(sql, (kill_ms, service_id))
        )

    async def remove(self, row: ServiceRow) -> None:
        """Removes a service group. Raises InUseError while instances are attached to it."""

        def change(connection: apsw.Connection) -> None:
            try:
                connection.execute("DELETE FROM services WHERE id = ?", (row.id,))
            except apsw.ConstraintError as error:
                raise InUseError(
                    f"Service group '{row.name}' has instances: delete them first"
                ) from error

        await self._database.write(change)

    def _row(self, found: Any) -> ServiceRow:
        id_, uuid, owner_id, name, revision, created_ms, document, kill_ms, domains = found
        hosts = tuple((domains or "").split())
        return ServiceRow(
            id_, uuid_text(uuid), owner_id, name, revision, created_ms, hosts, document, kill_ms
        )


def write_service(
    connection: apsw.Connection, row: ServiceRow, ports: int, claims: tuple[PortClaim, ...]
) -> ServiceRow:
    """Within a change: as `Services.update`."""
    connection.execute(
        "UPDATE services SET document=?, ports=?, kill_ms=?, revision=revision+1 "
        "WHERE id=? AND revision=?",
        (row.document, ports, row.kill_ms, row.id, row.revision),
    )
    if connection.changes() != 1:
        raise ConflictError(f"service group '{row.name}' changed meanwhile, or is gone")
    connection.execute("DELETE FROM domains WHERE service_id = ?", (row.id,))
    _set_domains(connection, row.id, row.domains)
    _set_claims(connection, row.id, row.owner_id, claims)
    return replace(row, revision=row.revision + 1)


def insert_service(
    connection: apsw.Connection, owner_id: int, new: NewService, quota: int | None
) -> ServiceRow:
    """Within a change: records a service group. Raises NameTakenError, InUseError, QuotaError."""
    if quota is not None:
        sql = "SELECT services FROM service_totals WHERE owner_id = ?"
        found = connection.execute(sql, (owner_id,)).fetchone()
        if found is not None and found[0] >= quota:
            raise QuotaError(f"Quota of {quota} service groups exceeded")
    try:
        connection.execute(
            "INSERT INTO services(uuid, owner_id, name, created_ms, ports, document, kill_ms, "
            "ephemeral) VALUES(?,?,?,?,?,?,?,?)",
            (
                UUID(new.uuid).bytes,
                owner_id,
                new.name,
                new.created_ms,
                new.ports,
                new.document,
                new.kill_ms,
                new.ephemeral,
            ),
        )
    except apsw.ConstraintError as error:
        raise NameTakenError(
            f"A service group with the name '{new.name}' already exists"
        ) from error
    id_ = connection.last_insert_rowid()
    _set_domains(connection, id_, new.domains)
    _set_claims(connection, id_, owner_id, new.claims)
    return new.recorded(id_, owner_id)


def _set_claims(
    connection: apsw.Connection, service_id: int, owner_id: int, claims: tuple[PortClaim, ...]
) -> None:
    """Records ports beside the domains."""
    sql = "SELECT s.name, s.owner_id FROM domains d JOIN services s ON s.id = d.service_id WHERE "
    for claim in claims:
        taken = f"{_ALONE} OR {_SHARED}" if claim.alone else _ALONE
        holder = connection.execute(sql + taken, (claim.host,)).fetchone()
        if holder is not None:
            name, holders_owner_id = holder
            who = f"service group '{name}'" if holders_owner_id == owner_id else "another owner"
            raise InUseError(f"Port {claim.port} is in use by {who}")
        entry = claim.host if claim.alone else f"{claim.host}/{service_id}"
        connection.execute("INSERT INTO domains VALUES(?, ?)", (entry, service_id))


def _set_domains(connection: apsw.Connection, service_id: int, domains: tuple[str, ...]) -> None:
    for fqdn in domains:
        try:
            connection.execute("INSERT INTO domains VALUES(?, ?)", (fqdn, service_id))
        except apsw.ConstraintError as error:
            raise NameTakenError(f"The domain '{fqdn}' is in use by another service") from error

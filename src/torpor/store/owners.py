"""Owners, their quotas, and the hashes of their tokens."""

import json
from collections.abc import Mapping
from uuid import UUID, uuid4

import apsw

from torpor.store.database import Database
from torpor.store.errors import MissingError, NameTakenError
from torpor.store.records import Owner, Token
from torpor.store.uuids import uuid_text

KNOWN_MAX = 10_000


class Owners:
    """The owners and tokens tables."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[int, Owner] = {}
        """Owners that were asked for; each wake asks for one."""

    async def add(self, name: str) -> Owner:
        """Makes an owner. Raises NameTakenError."""
        uuid = uuid4()

        def change(connection: apsw.Connection) -> Owner:
            try:
                connection.execute(
                    "INSERT INTO owners(uuid, name, quotas) VALUES(?,?,?)",
                    (uuid.bytes, name, b"{}"),
                )
            except apsw.ConstraintError as error:
                raise NameTakenError(f"A user with the name '{name}' already exists") from error
            return Owner(connection.last_insert_rowid(), str(uuid), name)

        return await self._database.write(change)

    def all(self) -> list[Owner]:
        """All owners, oldest first."""
        rows = self._database.reader.execute("SELECT id, uuid, name, quotas FROM owners")
        return [Owner(row[0], uuid_text(row[1]), row[2], json.loads(row[3])) for row in rows]

    def by_id(self, owner_id: int) -> Owner:
        """The owner of this id. Raises MissingError."""
        owner = self._known.get(owner_id)
        if owner is None:
            for owner in self._select("id = ?", owner_id):
                if len(self._known) >= KNOWN_MAX:
                    self._known.clear()
                self._known[owner_id] = owner
                return owner
            raise MissingError("the user of this token is gone")
        return owner

    def find(self, *, uuid: str = "", name: str = "") -> Owner:
        """The owner of this uuid or name. Raises MissingError."""
        if uuid:
            try:
                raw = UUID(uuid).bytes
            except ValueError as error:
                raise MissingError(f"Invalid uuid '{uuid}'") from error
            found = self._select("uuid = ?", raw)
        else:
            found = self._select("name = ?", name)
        if not found:
            raise MissingError(f"No user with {'uuid' if uuid else 'name'} '{uuid or name}'")
        return found[0]

    def _select(self, where: str, value: object) -> list[Owner]:
        sql = f"SELECT id, uuid, name, quotas FROM owners WHERE {where}"
        rows = self._database.reader.execute(sql, (value,))
        return [Owner(row[0], uuid_text(row[1]), row[2], json.loads(row[3])) for row in rows]

    async def set_quotas(self, owner_id: int, quotas: Mapping[str, int]) -> None:
        """Replaces what differs from the default quotas."""
        document = json.dumps(dict(quotas)).encode()

        def change(connection: apsw.Connection) -> None:
            connection.execute("UPDATE owners SET quotas=? WHERE id=?", (document, owner_id))

        await self._database.write(change)
        self._known.pop(owner_id, None)

    async def add_token(self, token: Token, hash_: bytes) -> None:
        """Records a token by its hash. Raises NameTakenError."""

        def change(connection: apsw.Connection) -> None:
            try:
                connection.execute(
                    "INSERT INTO tokens(uuid, owner_id, name, hash, scopes, created_ms, "
                    "expires_ms) VALUES(?,?,?,?,?,?,?)",
                    (UUID(token.uuid).bytes, token.owner_id, token.name, hash_,
                     " ".join(token.scopes), token.created_ms, token.expires_ms),
                )  # fmt: skip
            except apsw.ConstraintError as error:
                raise NameTakenError(f"A token named '{token.name}' already exists") from error

        await self._database.write(change)

    def tokens(self, owner_id: int) -> list[Token]:
        """The owner's tokens."""
        return self._tokens("owner_id = ? ORDER BY id", owner_id)

    def token_by_hash(self, hash_: bytes) -> Token | None:
        """The token of this hash, or None.

        An index look-up of a SHA-256 of the secret tells nothing by its duration: what can be
        learnt is about hashes, from which no secret with that hash can be found.
        """
        found = self._tokens("hash = ?", hash_)
        return found[0] if found else None

    def _tokens(self, where: str, value: object) -> list[Token]:
        sql = (
            f"SELECT uuid, owner_id, name, scopes, created_ms, expires_ms FROM tokens WHERE {where}"
        )
        return [
            Token(uuid_text(row[0]), row[1], row[2], tuple(row[3].split()), row[4], row[5])
            for row in self._database.reader.execute(sql, (value,))
        ]

    async def remove_token(self, owner_id: int, name: str) -> None:
        """Revokes a token. Raises MissingError."""

        def change(connection: apsw.Connection) -> None:
            connection.execute(
                "DELETE FROM tokens WHERE owner_id = ? AND name = ?", (owner_id, name)
            )
            if connection.changes() != 1:
                raise MissingError(f"No token with name '{name}'")

        await self._database.write(change)

"""Who asks, and what they may.

A bearer token is 256 random bits; the database holds its SHA-256 only. A connection through the
local socket needs none: the kernel says who is at its other end, and only torpord's own user and
root get as far as this.
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Literal, get_args
from uuid import uuid4

from torpor.controller.events import now_ms
from torpor.store import MissingError, Owner, Store, Token

TokenScope = Literal["read", "write", "admin"]
SCOPES: tuple[str, ...] = get_args(TokenScope)
ALL_SCOPES = frozenset(SCOPES)
PREFIX = "torpor_"
FIRST_OWNER = "default"
MAX_TOKEN_CHARS = 256


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: an owner, with what the token allows."""

    owner: Owner
    scopes: frozenset[str]
    token_name: str = ""


def new_token() -> tuple[str, bytes]:
    """A token, and the hash that is kept of it."""
    token = PREFIX + secrets.token_urlsafe(32)
    return token, token_hash(token)


def token_hash(token: str) -> bytes:
    """What is kept of a token. No salt or stretching: 256 random bits cannot be guessed."""
    return hashlib.sha256(token.encode()).digest()


def authenticate(store: Store, header: str) -> Principal | None:
    """The principal of an Authorization header, or None if it is no valid token's."""
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.startswith(PREFIX) or len(token) > MAX_TOKEN_CHARS:
        return None
    # Found by hash: the time that takes tells of hashes only, and nobody can make a token for one.
    found = store.owners.token_by_hash(token_hash(token))
    if found is None or (found.expires_ms is not None and found.expires_ms <= now_ms()):
        return None
    try:
        owner = store.owners.by_id(found.owner_id)
    except MissingError:
        return None
    return Principal(owner, frozenset(found.scopes), found.name)


def local_principal(store: Store) -> Principal:
    """Whoever comes through the local socket: the first owner, with every scope."""
    return Principal(store.owners.find(name=FIRST_OWNER), ALL_SCOPES)


async def ensure_first_token(store: Store) -> str | None:
    """Makes the first owner and its token if there are none; the token if it was made now."""
    try:
        store.owners.find(name=FIRST_OWNER)
    except MissingError:
        owner = await store.owners.add(FIRST_OWNER)
        token, hash_ = new_token()
        await store.owners.add_token(
            Token(str(uuid4()), owner.id, "first", SCOPES, now_ms(), None), hash_
        )
        return token
    return None

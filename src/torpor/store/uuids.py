"""Uuids: 16 bytes in the database, text everywhere else."""

from uuid import UUID

from torpor.store.errors import MissingError


def uuid_bytes(text: str) -> bytes:
    try:
        return UUID(text).bytes
    except ValueError as error:
        raise MissingError(f"Invalid uuid '{text}'") from error


def uuid_bounds(prefix: str) -> tuple[bytes, bytes] | None:
    """The lowest and highest uuid that begins with some digits; None if none can."""
    digits = prefix.lower().replace("-", "")
    if not 4 <= len(digits) <= 32 or not set(digits) <= set("0123456789abcdef"):
        return None
    return bytes.fromhex(digits.ljust(32, "0")), bytes.fromhex(digits.ljust(32, "f"))


def uuid_text(raw: bytes) -> str:
    """A uuid as everybody writes it."""
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

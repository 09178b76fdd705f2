"""What the controller refuses, with the code that the platform API gives to each.

The numbers are those that public clients of that API know; only NOT_FOUND and ALREADY_EXISTS are
told apart by the official SDK.
"""

from enum import IntEnum

from torpor.errors import TorporError
from torpor.store import (
    ConflictError,
    InUseError,
    MissingError,
    NameTakenError,
    NoSpaceError,
    QuotaError,
    StoreError,
)


class Code(IntEnum):
    """Error codes of items in answers."""

    NOT_SUPPORTED = 1
    INVALID = 7
    NOT_FOUND = 8
    NO_SPACE = 9
    FAILED = 10
    WRONG_STATE = 11
    TIMED_OUT = 12
    MISSING_ID = 13
    NOT_ALLOWED = 14
    ATTACHED = 15
    MALFORMED = 16
    CONFLICTING = 17
    QUOTA = 19
    ALREADY_EXISTS = 23


class ItemError(TorporError):
    """One object of a request could not be dealt with; the others can."""

    def __init__(self, code: Code, message: str, *, uuid: str = "", name: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.uuid = uuid
        self.name = name


class BusyError(ItemError):
    """It cannot be done now: a guest does not come to rest, or memory is short. Try again."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.FAILED, message)


def invalid(field: str, rule: str) -> ItemError:
    """A field breaks a rule."""
    return ItemError(Code.INVALID, f"'{field}' {rule}")


def not_supported(what: str) -> ItemError:
    """Something that this version does not do."""
    return ItemError(Code.NOT_SUPPORTED, f"{what}: not supported yet")


_CODES: tuple[tuple[type[StoreError], Code], ...] = (
    (MissingError, Code.NOT_FOUND),
    (NameTakenError, Code.ALREADY_EXISTS),
    (InUseError, Code.ATTACHED),
    (QuotaError, Code.QUOTA),
    (NoSpaceError, Code.NO_SPACE),
    (ConflictError, Code.FAILED),
)


def from_store(error: StoreError, *, uuid: str = "", name: str = "") -> ItemError:
    """The same refusal in the words of the API."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), Code.FAILED)
    return ItemError(code, str(error), uuid=uuid, name=name)

"""What the store refuses. Every message names the input and the rule.

StoreError
├── NameTakenError    another object of this owner and kind has the name
├── MissingError      no such object
├── ConflictError     the object changed since it was read; nothing was written
├── InUseError        something else still refers to the object
├── QuotaError        the owner may not have more of these
├── NoSpaceError      the disk is full; nothing was written, and reads go on
└── DamagedError      what is on disk does not match its checksum, or is of another version
"""

from torpor.errors import TorporError


class StoreError(TorporError):
    """Base of all that the store refuses."""


class NameTakenError(StoreError):
    """Another object of the same owner and kind has this name."""


class MissingError(StoreError):
    """There is no such object."""


class ConflictError(StoreError):
    """The object is not the revision or generation that the change was made from."""


class InUseError(StoreError):
    """Something else refers to the object."""


class QuotaError(StoreError):
    """The owner has as many as it may."""


class NoSpaceError(StoreError):
    """There is no room on the disk."""


class DamagedError(StoreError):
    """Content does not match its checksum, or cannot be understood."""

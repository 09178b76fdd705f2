"""What Torpor keeps on disk about instances, services, owners and snapshots (docs/store.md)."""

from torpor.store.content import Content, OpenFile
from torpor.store.errors import (
    ConflictError,
    DamagedError,
    InUseError,
    MissingError,
    NameTakenError,
    NoSpaceError,
    QuotaError,
    StoreError,
)
from torpor.store.instances import Page
from torpor.store.records import (
    Base,
    InstanceRow,
    Kind,
    NewBase,
    NewInstance,
    NewService,
    Owner,
    PortClaim,
    ServiceRow,
    Snapshot,
    State,
    Token,
    Total,
)
from torpor.store.store import Store

__all__ = [
    "Base",
    "ConflictError",
    "Content",
    "DamagedError",
    "InUseError",
    "InstanceRow",
    "Kind",
    "MissingError",
    "NameTakenError",
    "NewBase",
    "NewInstance",
    "NewService",
    "NoSpaceError",
    "OpenFile",
    "Owner",
    "Page",
    "PortClaim",
    "QuotaError",
    "ServiceRow",
    "Snapshot",
    "State",
    "Store",
    "StoreError",
    "Token",
    "Total",
]

"""The operations, one module for each kind of resource. Importing this fills the table."""

from torpor.api.resources import (
    audit,
    checkpoints,
    controlplane,
    images,
    instances,
    load,
    own,
    services,
    templates,
    unsupported,
    users,
)

__all__ = [
    "audit",
    "checkpoints",
    "controlplane",
    "images",
    "instances",
    "load",
    "own",
    "services",
    "templates",
    "unsupported",
    "users",
]

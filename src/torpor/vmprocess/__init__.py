"""VM processes: starting them, and telling them what to do (docs/control-socket.md)."""

from torpor.vmprocess.client import VMProcess
from torpor.vmprocess.launch import Launched, launch
from torpor.vmprocess.messages import (
    READY_PORTS_MAX,
    Boot,
    Ended,
    Origin,
    Prepare,
    Ready,
    Refused,
    Restore,
    Status,
    Stored,
    Unlinked,
)

__all__ = [
    "READY_PORTS_MAX",
    "Boot",
    "Ended",
    "Launched",
    "Origin",
    "Prepare",
    "Ready",
    "Refused",
    "Restore",
    "Status",
    "Stored",
    "Unlinked",
    "VMProcess",
    "launch",
]

"""How much an owner may have. The defaults are for a server of one's own: generous, and finite."""

from collections.abc import Mapping

import msgspec

from torpor.controller.errors import invalid
from torpor.controller.rules import MEMORY_MB
from torpor.store import Owner


class Quotas(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one owner."""

    instances: int = 2_000_000
    live_instances: int = 10_000
    live_memory_mb: int = 1 << 20
    service_groups: int = 1_000_000
    min_memory_mb: int = MEMORY_MB[0]
    max_memory_mb: int = MEMORY_MB[1]

    @classmethod
    def of(cls, owner: Owner) -> "Quotas":
        """The owner's, where they differ from the defaults."""
        return cls(**owner.quotas) if owner.quotas else _DEFAULTS


_DEFAULTS = Quotas()


def checked_quotas(changes: Mapping[str, int]) -> Mapping[str, int]:
    """Raises ItemError naming what is no quota or not a number that can be one."""
    for name, value in changes.items():
        if name not in Quotas.__struct_fields__:
            raise invalid(name, f"is no quota; there are {', '.join(Quotas.__struct_fields__)}")
        if not 0 <= value <= 2**40:
            raise invalid(name, "must be 0 or more")
    return changes

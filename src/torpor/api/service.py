"""What handlers work with: the controller, and what this server says about itself."""

import time
from dataclasses import dataclass, field

from torpor.controller import Controller
from torpor.store import Store


@dataclass(frozen=True, slots=True)
class Service:
    """One server."""

    controller: Controller
    endpoint: str
    """The URL that clients reach it by, without a trailing slash."""
    uuid: str
    metro: str = "local"
    began_s: float = field(default_factory=time.monotonic)

    @property
    def store(self) -> Store:
        """The store."""
        return self.controller.store

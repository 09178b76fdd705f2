"""What exists and what state it is in: the part of torpord that decides."""

from torpor.controller.controller import Controller
from torpor.controller.errors import Code, ItemError

__all__ = ["Code", "Controller", "ItemError"]

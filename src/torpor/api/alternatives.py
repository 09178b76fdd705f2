"""What there is in place of a name or value that a body has and may not have."""

import re
from collections.abc import Iterator
from typing import Any

from msgspec import inspect

_STEP = re.compile(r"\.(\w+)|\[(?:\d+|\.\.\.)\]")
_WHERE = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`\Z")


def alternatives(kind: Any, message: str) -> str:
    """The end of a sentence about msgspec's `message`, on decoding a `kind`; maybe empty."""
    if not message.startswith(("Object contains unknown field", "Invalid enum value")):
        return ""
    where = _WHERE.search(message)
    found = list(_members(inspect.type_info(kind)))
    for name in _STEP.findall("" if where is None else where["path"]):
        found = [
            member for each in found for below in _below(each, name) for member in _members(below)
        ]
    names: list[str] = []
    for each in found:
        if isinstance(each, inspect.StructType) and message.startswith("Object"):
            names += [field.encode_name for field in each.fields]
        elif isinstance(each, inspect.LiteralType) and message.startswith("Invalid"):
            names += map(str, each.values)
    return f"; there are: {', '.join(names)}" if names else ""


def _members(kind: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.UnionType):
        yield from kind.types
    else:
        yield kind


def _below(kind: inspect.Type, name: str) -> Iterator[inspect.Type]:
    """The types of a member, or without a name of an array's objects."""
    if not name and isinstance(kind, inspect.ListType | inspect.VarTupleType):
        yield kind.item_type
    elif isinstance(kind, inspect.StructType):
        yield from (field.type for field in kind.fields if field.encode_name == name)

"""Every operation of the API in one table, from which routes, OpenAPI and docs/api.md come.

An operation is declared once, by `@operation` above its handler. Most are of one of two forms:

- `each`: the handler deals with one object. They come from a body (one, or an array of them), from
  the uuid in the path, or from `uuid` and `name` in the query; one's failure leaves the others.
- `whole`: the handler answers the whole request.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from starlette.requests import Request

from torpor.api.wire import Item

if TYPE_CHECKING:
    from torpor.api.auth import Principal
    from torpor.api.service import Service

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Scope = Literal["read", "write", "admin", "none"]
Support = Literal["supported", "partial", "not supported yet"]

MAX_ITEMS = 10_000
"""Objects in one request."""


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For operations without parameters."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way through a handler."""

    service: "Service"
    principal: "Principal"
    request: Request
    path: dict[str, str]
    query: Any
    body: Any
    warnings: dict[str, None] = field(default_factory=dict)
    """What the client is told besides, each once."""

    def warn(self, message: str) -> None:
        """Something was done, though not as the client may think."""
        self.warnings[message] = None


Handler = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    id: str
    method: Method
    path: str
    summary: str
    group: str
    form: Literal["each", "whole", "refused"]
    handler: Handler | None
    key: str = ""
    """The member of `data` that holds the objects."""
    answer: Any = None
    """The type of one object of the answer, or a tuple of the types that it may have."""
    query: Any = NoQuery
    body: Any = None
    """The type of one object of the body, for `each`; of the whole body otherwise."""
    parallel: int = 64
    """Objects of one request that are dealt with at the same time."""
    array: bool = False
    """Whether the body is an array (one object alone is understood, too)."""
    body_needed: bool = False
    scope: Scope = "write"
    support: Support = "supported"
    note: str = ""
    status: int = 200
    """Of a refusal: 200 where an envelope with a failed object says it."""
    media_type: str = "application/json"
    envelope: bool = True


@dataclass(slots=True)
class Registry:
    """The table. Each module of `torpor.api.resources` fills its part."""

    operations: list[Operation] = field(default_factory=list)

    def add(
        self, method: Method, path: str, id_: str, summary: str, **more: Any
    ) -> Callable[[Handler], Handler]:
        """Declares an operation; the decorated function is its handler."""
        more.setdefault("scope", "read" if method == "GET" else "write")
        more.setdefault("form", "whole")

        def declare(handler: Handler) -> Handler:
            operation = Operation(
                id=id_, method=method, path=path, summary=summary, handler=handler, **more
            )
            self.operations.append(operation)
            return handler

        return declare

    def refuse(self, method: Method, path: str, id_: str, *, group: str, **more: Any) -> None:
        """Declares an operation that is answered with `not supported yet`, whatever it holds."""
        words = id_.replace("_", " ").capitalize()
        more.setdefault("scope", "read" if method == "GET" else "write")
        self.operations.append(
            Operation(
                id=id_,
                method=method,
                path=path,
                summary=words,
                group=group,
                form="refused",
                handler=None,
                answer=Item,
                support="not supported yet",
                **more,
            )
        )


REGISTRY = Registry()
operation = REGISTRY.add

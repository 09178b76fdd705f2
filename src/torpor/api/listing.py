"""GET of lists: by references, which may fail one by one, or by pages."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from torpor.api import rendering
from torpor.api.dispatch import RequestError, failed
from torpor.api.operations import Call
from torpor.controller import ItemError
from torpor.controller.requests import Reference
from torpor.store import InstanceRow, Kind, MissingError, Page, State

PageCount = Annotated[int, msgspec.Meta(ge=0, le=100_000)]


class References(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters that name objects."""

    uuid: list[str] = []
    name: list[str] = []


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a list."""

    uuid: list[str] = []
    name: list[str] = []
    details: bool = True
    count: PageCount = 0
    from_: str = msgspec.field(default="", name="from")
    order: Literal["asc", "desc"] = "asc"
    sortby: Literal["create_time"] = "create_time"
    tags: str = ""
    state: State | None = None


class OneQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters for one object."""

    details: bool = True


async def instances(call: Call, kind: Kind) -> list[Any]:
    """The instances, templates or checkpoints that a request names, or a page of all."""
    query = call.query
    named = references(call)
    if named is not None:
        answers: list[Any] = []
        for reference in named:
            try:
                row = call.service.controller.find(call.principal.owner, kind, reference)
            except ItemError as error:
                answers.append(failed(error, reference))
            else:
                answers.append(rendering.instance(call.service, row, details=query.details))
        return answers
    here: list[int] = []
    elsewhere: list[int] = []
    if query.state is not None:
        for live in call.service.controller.lifecycle.lives.all():
            (here if live.state == query.state else elsewhere).append(live.row.id)
    page = Page(
        start=query.from_,
        count=query.count,
        descending=query.order == "desc",
        tags=tuple(dict.fromkeys(query.tags.split(","))) if query.tags else (),
        state=query.state or "",
        here=tuple(here),
        elsewhere=tuple(elsewhere),
    )
    try:
        rows: Sequence[InstanceRow] = call.service.store.instances.page(
            call.principal.owner.id, kind, page
        )
    except MissingError as error:
        raise RequestError(400, str(error)) from error
    return [rendering.instance(call.service, row, details=query.details) for row in rows]


def references(call: Call) -> list[Reference] | None:
    """The objects that a request names in path, body or query; None if it names none."""
    if "uuid" in call.path:
        return [Reference(uuid=call.path["uuid"])]
    if call.body is not None:
        return list(call.body)
    named = [Reference(uuid=uuid) for uuid in call.query.uuid]
    named += [Reference(name=name) for name in call.query.name]
    return named or None

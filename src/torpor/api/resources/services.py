"""Service groups."""

from typing import Any, Literal

from torpor.api import listing, rendering
from torpor.api.dispatch import failed
from torpor.api.listing import ListQuery, OneQuery
from torpor.api.operations import Call, operation
from torpor.api.wire import Item, ServiceGroupAnswer, UpdatedAnswer
from torpor.controller import ItemError
from torpor.controller.errors import not_supported
from torpor.controller.model import Autokill, Service
from torpor.controller.quotas import Quotas
from torpor.controller.requests import Domain, Reference, Request

PATH = "/v1/services"
GROUP = "Services"


class CreateServiceGroup(Request, frozen=True, kw_only=True):
    """A new service group."""

    name: str | None = None
    services: list[Service]
    domains: list[Domain] | None = None
    soft_limit: int | None = None
    hard_limit: int | None = None
    autokill: Autokill | None = None


class UpdateItem(Reference, frozen=True, kw_only=True):
    """One change of one property."""

    id: str | None = None
    prop: Literal["services", "domains", "soft_limit", "hard_limit", "autokill"]
    op: Literal["set", "add", "del"]
    value: Any = None


@operation("POST", PATH, "create_service_group", "Create service groups", group=GROUP, form="each",
           key="service_groups", answer=ServiceGroupAnswer, body=CreateServiceGroup, array=True,
           body_needed=True, support="partial", note="no udp, ip or certificate")  # fmt: skip
async def create_service_group(call: Call, item: CreateServiceGroup) -> ServiceGroupAnswer:
    owner = call.principal.owner
    groups = call.service.controller.groups
    new = await groups.planned(
        name=item.name,
        services=item.services,
        domains=item.domains,
        soft_limit=item.soft_limit,
        hard_limit=item.hard_limit,
        autokill=item.autokill,
    )
    row = await groups.create(owner.id, new, Quotas.of(owner).service_groups)
    return rendering.service_group(call.service, row)


@operation("GET", PATH, "get_service_groups", "List service groups", group=GROUP,
           key="service_groups", answer=ServiceGroupAnswer, query=ListQuery, body=Reference,
           array=True)  # fmt: skip
@operation("GET", PATH + "/{uuid:str}", "get_service_group_by_uuid", "Get one service group",
           group=GROUP, key="service_groups", answer=ServiceGroupAnswer,
           query=OneQuery)  # fmt: skip
async def get_service_groups(call: Call) -> list[Any]:
    owner = call.principal.owner
    named = listing.references(call)
    if named is None:
        query = call.query
        if query.tags or query.state is not None:
            return [failed(not_supported("'tags' and 'state' of service groups"))]
        rows = call.service.store.services.page(
            owner.id, start=query.from_, count=query.count, descending=query.order == "desc"
        )
        return [rendering.service_group(call.service, row) for row in rows]
    answers: list[Any] = []
    for reference in named:
        try:
            row = call.service.controller.service(owner, reference)
            answers.append(rendering.service_group(call.service, row))
        except ItemError as error:
            answers.append(failed(error, reference))
    return answers


@operation("PATCH", PATH, "update_service_groups", "Change properties of service groups",
           group=GROUP, form="each", key="service_groups", answer=UpdatedAnswer, body=UpdateItem,
           array=True, body_needed=True)  # fmt: skip
@operation("PATCH", PATH + "/{uuid:str}", "update_service_group_by_uuid",
           "Change properties of a service group", group=GROUP, form="each", key="service_groups",
           answer=UpdatedAnswer, body=UpdateItem, array=True, body_needed=True)  # fmt: skip
async def update_service_group(call: Call, item: UpdateItem) -> UpdatedAnswer:
    controller = call.service.controller
    row = controller.service(call.principal.owner, item)
    await controller.groups.update(row, item.prop, item.op, item.value)
    return UpdatedAnswer(status="success", uuid=row.uuid, name=row.name, id=item.id)


@operation("DELETE", PATH, "delete_service_groups", "Delete service groups", group=GROUP,
           form="each", key="service_groups", answer=Item, body=Reference, array=True,
           body_needed=True)  # fmt: skip
@operation("DELETE", PATH + "/{uuid:str}", "delete_service_group_by_uuid",
           "Delete a service group", group=GROUP, form="each", key="service_groups",
           answer=Item)  # fmt: skip
async def delete_service_group(call: Call, item: Reference) -> Item:
    controller = call.service.controller
    row = controller.service(call.principal.owner, item)
    await controller.groups.remove(row)
    return Item(status="success", uuid=row.uuid, name=row.name)

"""Templates: instances that others are cloned from."""

from typing import Any, Literal

from torpor.api import listing
from torpor.api.listing import ListQuery, OneQuery
from torpor.api.operations import Call, operation
from torpor.api.resources.instances import delete, find, update
from torpor.api.wire import InstanceAnswer, TransitionAnswer, UpdatedAnswer
from torpor.controller.model import Autokill
from torpor.controller.requests import Reference, Seconds

PATH = "/v1/instances/templates"
GROUP = "Templates"


class TemplateItem(Reference, frozen=True, kw_only=True):
    """What is to become a template."""

    timeout_s: Seconds | None = None
    autokill: Autokill | None = None


class UpdateItem(Reference, frozen=True, kw_only=True):
    """One change of one property."""

    id: str | None = None
    prop: Literal["tags", "delete_lock", "autokill"]
    op: Literal["set", "add", "del"]
    value: Any = None


@operation("POST", PATH, "create_template_instances", "Turn instances into templates", group=GROUP,
           form="each", key="instances", answer=TransitionAnswer, body=TemplateItem, array=True,
           body_needed=True)  # fmt: skip
async def create_template(call: Call, item: TemplateItem) -> TransitionAnswer:
    row = find(call, item)
    made = await call.service.controller.make_template(call.principal.owner, row, item.autokill)
    return TransitionAnswer(status="success", uuid=made.uuid, name=made.name, state="template")


@operation("GET", PATH, "get_template_instances", "List templates", group=GROUP, key="instances",
           answer=InstanceAnswer, query=ListQuery, body=Reference, array=True)  # fmt: skip
@operation("GET", PATH + "/{uuid:str}", "get_template_instance_by_uuid", "Get one template",
           group=GROUP, key="instances", answer=InstanceAnswer, query=OneQuery)  # fmt: skip
async def get_templates(call: Call) -> list[Any]:
    return await listing.instances(call, "template")


@operation("PATCH", PATH, "update_template_instances", "Change properties of templates",
           group=GROUP, form="each", key="instances", answer=UpdatedAnswer, body=UpdateItem,
           array=True, body_needed=True)  # fmt: skip
@operation("PATCH", PATH + "/{uuid:str}", "update_template_instance_by_uuid",
           "Change properties of a template", group=GROUP, form="each", key="instances",
           answer=UpdatedAnswer, body=UpdateItem, array=True, body_needed=True)  # fmt: skip
async def update_template(call: Call, item: UpdateItem) -> UpdatedAnswer:
    return await update(call, item, "template")


@operation("DELETE", PATH, "delete_template_instances", "Delete templates", group=GROUP,
           form="each", key="instances", answer=TransitionAnswer, body=Reference, array=True,
           body_needed=True)  # fmt: skip
@operation("DELETE", PATH + "/{uuid:str}", "delete_template_instance_by_uuid",
           "Delete a template", group=GROUP, form="each", key="instances",
           answer=TransitionAnswer)  # fmt: skip
async def delete_template(call: Call, item: Reference) -> TransitionAnswer:
    return await delete(call, item, "template")

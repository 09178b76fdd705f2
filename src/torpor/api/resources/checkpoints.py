"""Checkpoints: states of instances under names of their own."""

from typing import Any, Literal

import msgspec

from torpor.api import listing
from torpor.api.listing import ListQuery, OneQuery, References
from torpor.api.operations import Call, operation
from torpor.api.resources.instances import delete, find, history, update
from torpor.api.wire import HistoryAnswer, InstanceAnswer, TransitionAnswer, UpdatedAnswer
from torpor.controller.model import Autokill
from torpor.controller.requests import Reference, Request, Seconds

PATH = "/v1/instances/checkpoints"
GROUP = "Checkpoints"


class CheckpointItem(Request, frozen=True, kw_only=True):
    """Whose state is to be saved, and as what."""

    from_: Reference = msgspec.field(name="from")
    name: str | None = None
    timeout_s: Seconds | None = None
    tags: list[str] | None = None
    autokill: Autokill | None = None


class UpdateItem(Reference, frozen=True, kw_only=True):
    """One change of one property."""

    id: str | None = None
    prop: Literal["tags", "delete_lock", "autokill"]
    op: Literal["set", "add", "del"]
    value: Any = None


@operation("POST", PATH, "create_checkpoint_instances", "Save states of instances", group=GROUP,
           form="each", key="instances", answer=TransitionAnswer, body=CheckpointItem, array=True,
           body_needed=True)  # fmt: skip
async def create_checkpoint(call: Call, item: CheckpointItem) -> TransitionAnswer:
    source = find(call, item.from_)
    made = await call.service.controller.checkpoint(
        call.principal.owner, source, item.name, item.tags, item.autokill
    )
    return TransitionAnswer(status="success", uuid=made.uuid, name=made.name, state="checkpoint")


@operation("GET", PATH, "get_checkpoint_instances", "List checkpoints", group=GROUP,
           key="instances", answer=InstanceAnswer, query=ListQuery, body=Reference,
           array=True)  # fmt: skip
@operation("GET", PATH + "/{uuid:str}", "get_checkpoint_instance_by_uuid", "Get one checkpoint",
           group=GROUP, key="instances", answer=InstanceAnswer, query=OneQuery)  # fmt: skip
async def get_checkpoints(call: Call) -> list[Any]:
    return await listing.instances(call, "checkpoint")


@operation("PATCH", PATH, "update_checkpoint_instances", "Change properties of checkpoints",
           group=GROUP, form="each", key="instances", answer=UpdatedAnswer, body=UpdateItem,
           array=True, body_needed=True)  # fmt: skip
@operation("PATCH", PATH + "/{uuid:str}", "update_checkpoint_instance_by_uuid",
           "Change properties of a checkpoint", group=GROUP, form="each", key="instances",
           answer=UpdatedAnswer, body=UpdateItem, array=True, body_needed=True)  # fmt: skip
async def update_checkpoint(call: Call, item: UpdateItem) -> UpdatedAnswer:
    return await update(call, item, "checkpoint")


@operation("DELETE", PATH, "delete_checkpoint_instances", "Delete checkpoints", group=GROUP,
           form="each", key="instances", answer=TransitionAnswer, body=Reference, array=True,
           body_needed=True)  # fmt: skip
@operation("DELETE", PATH + "/{uuid:str}", "delete_checkpoint_instance_by_uuid",
           "Delete a checkpoint", group=GROUP, form="each", key="instances",
           answer=TransitionAnswer)  # fmt: skip
async def delete_checkpoint(call: Call, item: Reference) -> TransitionAnswer:
    return await delete(call, item, "checkpoint")


@operation("GET", PATH + "/history", "get_checkpoint_history", "Checkpoints behind checkpoints",
           group=GROUP, form="each", key="instances", answer=HistoryAnswer, query=References,
           body=Reference, array=True)  # fmt: skip
@operation("GET", PATH + "/{uuid:str}/history", "get_checkpoint_history_by_uuid",
           "Checkpoints behind a checkpoint", group=GROUP, form="each", key="instances",
           answer=HistoryAnswer)  # fmt: skip
async def get_history(call: Call, item: Reference) -> HistoryAnswer:
    return history(find(call, item, "checkpoint"))

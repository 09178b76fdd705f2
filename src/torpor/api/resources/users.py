"""Quotas, and health."""

import os
from importlib.metadata import version
from typing import Any

from torpor.api.dispatch import failed
from torpor.api.operations import Call, operation
from torpor.api.wire import HardLimits, Limits, QuotaAnswer, Usage
from torpor.controller import Code, ItemError
from torpor.controller.quotas import Quotas


@operation("GET", "/v1/users/quotas", "get_user", "Quotas", group="Users", key="quotas",
           answer=QuotaAnswer, support="partial", note="no volumes, no autoscale")  # fmt: skip
@operation("GET", "/v1/users/{uuid:str}/quotas", "get_user_by_uuid", "Quotas of a user",
           group="Users", key="quotas", answer=QuotaAnswer, support="partial",
           note="one's own only; no volumes, no autoscale")  # fmt: skip
async def get_quotas(call: Call) -> list[Any]:
    owner = call.principal.owner
    uuid = call.path.get("uuid", owner.uuid)
    if uuid != owner.uuid:
        return [failed(ItemError(Code.NOT_FOUND, f"No user with uuid '{uuid}'", uuid=uuid))]
    owner = call.service.store.owners.by_id(owner.id)
    quotas = Quotas.of(owner)
    totals = call.service.store.instances.totals(owner.id)
    groups, ports = call.service.store.services.totals(owner.id)
    lives = call.service.controller.lifecycle.lives.all()
    mine = [live.row for live in lives if live.row.owner_id == owner.id and live.vm is not None]
    return [
        QuotaAnswer(
            status="success",
            uuid=owner.uuid,
            used=Usage(
                instances=sum(each.instances for each in totals if each.kind == "instance"),
                live_instances=len(mine),
                live_vcpus=sum(row.vcpus for row in mine),
                live_memory_mb=sum(row.memory_mb for row in mine),
                service_groups=groups,
                services=ports,
            ),
            hard=HardLimits(
                instances=quotas.instances,
                live_instances=quotas.live_instances,
                live_memory_mb=quotas.live_memory_mb,
                service_groups=quotas.service_groups,
            ),
            limits=Limits(
                min_memory_mb=quotas.min_memory_mb,
                max_memory_mb=quotas.max_memory_mb,
                min_vcpus=1,
                max_vcpus=1,
            ),
        )
    ]


@operation("GET", "/v1/healthz", "healthz", "Health", group="Node", scope="none",
           answer=dict[str, Any])  # fmt: skip
async def healthz(call: Call) -> dict[str, Any]:
    images = call.service.controller.images.directory
    # Before the first image there is no directory, and nothing wrong with that.
    readable = not images.exists() or os.access(images, os.R_OK | os.X_OK)
    return {
        "checks": {"images": "healthy" if readable else "degraded"},
        "versions": {"torpor": version("torpor")},
    }

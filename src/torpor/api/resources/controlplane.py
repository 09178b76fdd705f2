"""Metros and nodes: this server is the only one of each."""

import os
import time
from typing import Annotated, Any, Literal

import msgspec

from torpor.api.dispatch import failed
from torpor.api.operations import Call, operation
from torpor.api.wire import MetroAnswer, NodeAnswer
from torpor.controller import Code, ItemError

GROUP = "Control plane"
NodeState = Literal[
    "unspecified",
    "pending",
    "provisioning",
    "configuring",
    "ready",
    "deprovisioning",
    "deprovisioned",
    "error",
    "maintenance",
]


class NodeQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which nodes."""

    uuid: list[str] = []
    name: list[str] = []
    cloudprovider: Literal["manual", "aws"] | None = None
    state: NodeState | None = None
    metro: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=0)] | None = None
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0


class WaitQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which nodes to wait for. A node that answers is ready."""

    uuid: list[str] = []
    name: list[str] = []
    states: list[NodeState] = []
    timeout_ms: Annotated[int, msgspec.Meta(ge=-1)] | None = None


@operation("GET", "/v1/metros", "list_metros", "Metros", group=GROUP, key="metros",
           answer=MetroAnswer)  # fmt: skip
async def list_metros(call: Call) -> list[MetroAnswer]:
    service = call.service
    return [
        MetroAnswer(
            uuid=service.uuid,
            endpoint=service.endpoint,
            name="This server",
            iata_code=service.metro,
            country="",
        )
    ]


@operation("GET", "/v1/auth", "get_authorization", "Who the token is", group=GROUP)
async def get_authorization(call: Call) -> dict[str, Any]:
    owner = call.principal.owner
    return {
        "organization_name": owner.name,
        "organization_display_name": owner.name,
        "organization_uuid": owner.uuid,
        "registry": call.service.endpoint,
    }


@operation("GET", "/v1/nodes", "list_nodes", "Nodes", group=GROUP, query=NodeQuery)
async def list_nodes(call: Call) -> dict[str, Any]:
    query, node = call.query, _node(call)
    wanted = (
        (not query.uuid or node.uuid in query.uuid)
        and (not query.name or node.name in query.name)
        and query.cloudprovider in (None, "manual")
        and query.state in (None, "ready")
        and query.metro in (None, node.metro)
        and query.offset == 0
        and query.limit != 0
    )
    nodes = [node] if wanted else []
    return {"nodes": nodes, "total_count": len(nodes)}


@operation("GET", "/v1/nodes/{uuid:str}", "get_node_by_uuid", "Get one node", group=GROUP,
           key="nodes", answer=NodeAnswer)  # fmt: skip
async def get_node(call: Call) -> list[Any]:
    node = _node(call)
    if call.path["uuid"] != node.uuid:
        uuid = call.path["uuid"]
        return [failed(ItemError(Code.NOT_FOUND, f"No node with uuid '{uuid}'", uuid=uuid))]
    return [node]


@operation("GET", "/v1/nodes/wait", "wait_nodes", "Wait for nodes", group=GROUP, key="nodes",
           answer=NodeAnswer, query=WaitQuery)  # fmt: skip
@operation("GET", "/v1/nodes/{uuid:str}/wait", "wait_node_by_uuid", "Wait for a node", group=GROUP,
           key="nodes", answer=NodeAnswer, query=WaitQuery)  # fmt: skip
async def wait_nodes(call: Call) -> list[Any]:
    node = _node(call)
    uuids = [call.path["uuid"]] if "uuid" in call.path else call.query.uuid
    answers: list[Any] = [
        failed(ItemError(Code.NOT_FOUND, f"No node '{each}'", name=each))
        for each in (*uuids, *call.query.name)
        if each not in (node.uuid, node.name)
    ]
    if len(answers) < len([*uuids, *call.query.name]) or not answers:
        if call.query.states and "ready" not in call.query.states:
            message = "The wait timed out: this node is ready, and will not be anything else"
            answers.append(failed(ItemError(Code.TIMED_OUT, message, uuid=node.uuid)))
        else:
            answers.append(node)
    return answers


@operation("GET", "/v1/nodes/providers/{cloudprovider:str}/regions", "list_regions", "Regions",
           group=GROUP)  # fmt: skip
async def list_regions(call: Call) -> dict[str, Any]:
    there = call.path["cloudprovider"] == "manual"
    return {"regions": [{"name": call.service.metro, "iata": call.service.metro}] if there else []}


@operation("GET", "/v1/nodes/providers/{cloudprovider:str}/types", "list_machine_types",
           "Machine types", group=GROUP)  # fmt: skip
async def list_machine_types(call: Call) -> dict[str, Any]:
    if call.path["cloudprovider"] != "manual":
        return {"machine_types": []}
    node = _node(call)
    return {
        "machine_types": [
            {
                "name": node.name,
                "vcpus": node.vcpus,
                "memory_mib": node.memory_mib,
                "available_regions": [node.metro],
            }
        ]
    }


def _node(call: Call) -> NodeAnswer:
    service = call.service
    return NodeAnswer(
        uuid=service.uuid,
        name=os.uname().nodename,
        state="ready",
        cloudprovider="manual",
        vcpus=os.cpu_count() or 1,
        memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        metro=service.metro,
        api_endpoint=service.endpoint,
        uptime_seconds=int(time.monotonic() - service.began_s),
    )

"""The audit stream: server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.responses import Response, StreamingResponse

from torpor.api.dispatch import RequestError
from torpor.api.operations import Call, operation
from torpor.api.wire import moment
from torpor.controller.events import Event, Subscription, TooManySubscribersError, now_ms

HEARTBEAT_S = 30.0
TYPES = ("vm.state_change", "vm.start_failed", "gap")


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which events; each a list with commas, empty for all."""

    events: str = ""
    uuid: str = ""
    tags: str = ""


@operation("GET", "/v1/audit", "subscribe_audit_events", "Follow what happens", group="Audit",
           query=AuditQuery, media_type="text/event-stream", support="partial",
           note="origins api, guest, proxy, scale-to-zero, restart, system, autokill")  # fmt: skip
async def subscribe(call: Call) -> Response:
    query = call.query
    types = set(query.events.split(",")) if query.events else set(TYPES)
    unknown = types.difference(TYPES)
    if unknown:
        raise RequestError(400, f"'events' has {sorted(unknown)}; there are {', '.join(TYPES)}")
    uuids = set(query.uuid.split(",")) if query.uuid else set()
    tags = set(query.tags.split(",")) if query.tags else set()

    def wanted(event: Event) -> bool:
        return (
            event.type in types and (not uuids or event.uuid in uuids) and tags.issubset(event.tags)
        )

    events = call.service.controller.events
    context = events.subscribe(call.principal.owner.uuid)
    try:
        subscription = context.__enter__()
    except TooManySubscribersError as error:
        raise RequestError(429, "There are too many subscribers: end one first") from error

    async def stream() -> AsyncIterator[bytes]:
        try:
            yield b": subscribed\n\n"
            async for chunk in _chunks(subscription, wanted, gaps="gap" in types):
                yield chunk
        finally:
            context.__exit__(None, None, None)

    return StreamingResponse(stream(), media_type="text/event-stream")


async def _chunks(subscription: Subscription, wanted: Any, *, gaps: bool) -> AsyncIterator[bytes]:
    while True:
        try:
            event = await asyncio.wait_for(subscription.queue.get(), HEARTBEAT_S)
        except TimeoutError:
            yield b": heartbeat\n\n"
            continue
        dropped = subscription.take_dropped()
        if dropped and gaps:
            yield _data({"type": "gap", "timestamp": moment(now_ms()), "dropped": dropped})
        if wanted(event):
            yield _data(
                {
                    "type": event.type,
                    "timestamp": moment(event.timestamp_ms),
                    "object": {
                        "type": "i",
                        "uuid": event.uuid,
                        "owner": event.owner,
                        "tags": list(event.tags),
                    },
                    "attribution": {
                        "trigger": "requested" if event.origin == "api" else "observed",
                        "origin": event.origin,
                    },
                    "data": dict(event.data),
                }
            )


def _data(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"

"""What the server does now: what runs, how many wakes there were, how large the store is."""

from typing import Any

from torpor.api.operations import Call, operation

MAX_LINKS = 2000
"""Running instances whose traffic is told."""


@operation("GET", "/torpor/v1/load", "get_load", "What runs, wakes, and the store's size",
           group="Torpor", scope="admin")  # fmt: skip
async def get_load(call: Call) -> dict[str, Any]:
    links, counters = await traffic(call)
    running = []
    for live in call.service.controller.lifecycle.lives.all():
        if live.row.owner_id != call.principal.owner.id or live.vm is None:
            continue
        link = links.get(live.row.uuid, {})
        running.append(
            {
                "uuid": live.row.uuid,
                "name": live.row.name,
                "state": live.state,
                "pid": live.vm.pid,
                "requests": link.get("requests", 0),
                "connections": link.get("connections", 0),
                "in_flight": link.get("in_flight", 0),
            }
        )
    return {
        "running": running,
        "proxy": counters is not None,
        # Counters of the proxy since its start; `wake_us` counts wakes by powers of two: entry N
        # has those of less than 2**N microseconds that no entry before has.
        "wakes": (counters or {}).get("wakes", 0),
        "wake_us": (counters or {}).get("wake_us", []),
        "store_bytes": call.service.store.size_bytes(),
    }


async def traffic(call: Call) -> tuple[dict[str, dict[str, int]], dict[str, Any] | None]:
    """Counters of running instances by uuid, and those of the proxy as a whole."""
    links: dict[str, dict[str, int]] = {}
    after: str | None = None
    while True:
        page = await call.service.controller.links.stats(after)
        if page is None:
            return links, None
        links.update({link["instance"]: link for link in page["links"]})
        if not page["links"] or len(links) >= MAX_LINKS:
            return links, page
        after = page["links"][-1]["instance"]

"""GET /torpor/v1/load: what runs, what the proxy counted, how large the store is."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from torpor.api.service import Service

pytestmark = pytest.mark.anyio


async def load_of(http: httpx.AsyncClient) -> dict[str, Any]:
    document = (await http.get("/torpor/v1/load")).json()
    assert document["status"] == "success", document
    return dict(document["data"])


async def started(http: httpx.AsyncClient, *names: str) -> list[str]:
    specs = [{"image": "web", "name": name, "autostart": True, "timeout_s": 30} for name in names]
    made = (await http.post("/v1/instances", json=specs)).json()["data"]["instances"]
    return [each["uuid"] for each in made]


async def test_without_a_proxy_there_are_no_wakes(http: httpx.AsyncClient) -> None:
    uuids = await started(http, "a", "b")
    (await http.put("/v1/instances/suspend", json=[{"uuid": uuids[1]}])).raise_for_status()
    load = await load_of(http)
    assert (load["proxy"], load["wakes"], load["wake_us"]) == (False, 0, [])
    assert [(each["name"], each["requests"]) for each in load["running"]] == [("a", 0)]
    assert load["store_bytes"]["database"] > 0
    assert load["store_bytes"]["lower"] == 0


async def test_counters_of_all_pages_are_put_together(
    server: Service, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = sorted(await started(http, "a", "b", "c"))
    asked = []

    async def stats(after: str | None) -> dict[str, Any]:
        asked.append(after)
        rest = [uuid for uuid in uuids if after is None or uuid > after]
        links = [
            {"instance": uuid, "requests": UUID(uuid).int % 100, "connections": 1, "in_flight": 0}
            for uuid in rest[:2]
        ]
        return {"links": links, "wakes": 12, "wake_us": [0, 12]}

    monkeypatch.setattr(server.controller.links, "stats", stats)
    load = await load_of(http)
    assert asked == [None, uuids[1], uuids[2]]
    assert {each["uuid"]: each["requests"] for each in load["running"]} == {
        uuid: UUID(uuid).int % 100 for uuid in uuids
    }
    assert (load["proxy"], load["wakes"], load["wake_us"]) == (True, 12, [0, 12])


async def test_it_is_the_operators_to_see(server: Service, http: httpx.AsyncClient) -> None:
    body = {"name": "reader", "scopes": ["read", "write"]}
    made = (await http.post("/torpor/v1/tokens", json=body)).json()["data"]["tokens"][0]
    headers = {"Authorization": f"Bearer {made['token']}"}
    async with httpx.AsyncClient(base_url=server.endpoint, headers=headers) as other:
        assert (await other.get("/torpor/v1/load")).status_code == 403

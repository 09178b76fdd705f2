"""What the SDK would not send: bad input, other verbs, tokens, and the local socket."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from torpor.api import server as server_module
from torpor.api.auth import authenticate, ensure_first_token
from torpor.api.service import Service
from torpor.store import Store

pytestmark = pytest.mark.anyio


async def body(response: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert response.status_code == status, response.text
    document: dict[str, Any] = response.json()
    return document


async def send(http: httpx.AsyncClient, method: str, path: str, given: Any) -> httpx.Response:
    return await http.request(method, path, content=json.dumps(given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": "web", "colour": "red"}, "unknown field `colour`"),
        ({"image": "web", "nme": "x"}, "there are: name, image, "),
        ({"service_group": {"domain": []}}, "; there are: "),
        (
            {"restart_policy": "often"},
            "`$[0].restart_policy`; there are: always, never, on-failure",
        ),
        (
            {"scale_to_zero": {"policy": "no"}},
            "`$[0].scale_to_zero.policy`; there are: idle, off, on",
        ),
        ({"features": ["speed"]}, "`$[0].features[0]`; there are: delete-on-stop, nested-virt"),
        ({"image": "web", "memory_mb": "much"}, "Expected `int"),
        ({"image": "web", "restart_policy": "often"}, "often"),
        ({"image": "web", "timeout_s": 1e9}, "timeout_s"),
        ([{"image": "web"}, 7], "$[1]"),
        ([{}] * 10_001, "at most 10000"),
        ("text", "Expected `array`"),
    ],
)
async def test_bodies_that_break_a_rule_are_refused_by_name(
    http: httpx.AsyncClient, given: Any, words: str
) -> None:
    answer = await body(await send(http, "POST", "/v1/instances", given), 400)
    assert answer["status"] == "error"
    assert words in answer["message"]


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ({"image": "web", "name": "-x"}, 7, "'name' must have"),
        ({"image": "web", "tags": ["a b"]}, 7, "'tags' must be"),
        ({"image": "web", "memory_mb": 1}, 7, "'memory_mb' must be"),
        ({"image": "web", "vcpus": 2}, 7, "'vcpus' is 2"),
        ({"image": "web", "env": {"": "x"}}, 7, "'env' names"),
        ({"image": "web", "annotations": {"a": "\n"}}, 7, "'annotations' values"),
        ({"image": "web", "volumes": [{"at": "/x"}]}, 1, "'volumes' of an instance: not supported"),
        ({"image": "web", "timeout_s": 3}, 7, "'timeout_s' needs 'autostart'"),
        ({"image": "web", "scale_to_zero": {"policy": "on"}}, 7, "needs 'service_group'"),
        ({}, 17, "One of 'image'"),
        ({"image": "web", "service_group": {"services": [{"port": 0}]}}, 7, "services.port"),
    ],
)
async def test_values_that_break_a_rule_are_item_errors(
    http: httpx.AsyncClient, given: Any, code: int, words: str
) -> None:
    answer = await body(await send(http, "POST", "/v1/instances", given))
    (item,) = answer["data"]["instances"]
    assert (answer["status"], item["status"], item["error"]) == ("error", "error", code)
    assert words in item["message"]


async def test_mixed_results(http: httpx.AsyncClient) -> None:
    given = [{"image": "web", "name": "a"}, {"image": "web", "name": "a"}]
    answer = await body(await send(http, "POST", "/v1/instances", given))
    assert answer["status"] == "partial_success"
    assert [item["status"] for item in answer["data"]["instances"]] == ["success", "error"]
    answer = await body(await http.get("/v1/instances?name=a&name=b"))
    assert answer["data"]["instances"][1]["error"] == 8


async def test_parameters(http: httpx.AsyncClient) -> None:
    for query, words in (
        ("colour=red", "Unknown parameter 'colour'"),
        ("count=-1", "Parameter"),
        ("order=up", "up"),
        ("from=yesterday", "uuid or an ISO"),
        ("count=1&count=2", "twice"),
    ):
        answer = await body(await http.get(f"/v1/instances?{query}"), 400)
        assert words in answer["message"]


async def test_old_verbs_and_bodies_of_get(http: httpx.AsyncClient) -> None:
    await send(http, "POST", "/v1/instances", {"image": "web", "name": "a"})
    answer = await body(await send(http, "GET", "/v1/instances", [{"name": "a"}]))
    assert [item["name"] for item in answer["data"]["instances"]] == ["a"]
    answer = await body(await send(http, "POST", "/v1/instances/stop", [{"name": "a"}]))
    assert answer["status"] == "success"
    assert (await body(await http.get("/v1/images/list")))["data"]["images"]
    document = await body(await http.get("/v1/images?namespace=official&details=true"))
    assert document["data"]["images"][0]["tags"][0]["name"] == "latest"
    answer = await body(await http.get("/v1/nothing"), 404)
    assert answer["message"] == "No API endpoint of this path"


async def test_unchanged_by_conflicting_wishes(http: httpx.AsyncClient) -> None:
    await send(http, "POST", "/v1/instances", {"image": "web", "name": "a"})
    for path, given, code in (
        ("suspend", [{"name": "a"}], 11),
        ("stop", [{"name": "a", "force": True, "drain_timeout_ms": 5}], 17),
        ("stop", [{"name": "a", "ifstate": "running"}], 11),
        ("start", [{"name": "a", "uuid": "x"}], 17),
        ("start", [{}], 13),
        ("start", [{"uuid": "x"}], 8),
    ):
        answer = await body(await send(http, "PUT", f"/v1/instances/{path}", given))
        assert answer["data"]["instances"][0]["error"] == code, (path, answer)


async def test_metrics_as_text(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/instances/metrics", headers={"Accept": "text/plain"})
    assert answer.headers["content-type"].startswith("text/plain")
    assert "# TYPE instance_state gauge" in answer.text


async def test_tokens(server: Service, http: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=server.endpoint) as nobody:
        for header in ("", "Bearer x", "Bearer torpor_" + "x" * 43, "Basic abc"):
            answer = await nobody.get("/v1/instances", headers={"Authorization": header})
            assert answer.status_code == 401
        assert (await nobody.get("/v1/healthz")).status_code == 200
    made = await body(
        await send(http, "POST", "/torpor/v1/tokens", {"name": "ci", "scopes": ["read"]})
    )
    secret = made["data"]["tokens"][0]["token"]
    headers = {"Authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(base_url=server.endpoint, headers=headers) as reader:
        assert (await reader.get("/v1/instances")).status_code == 200
        refused = await body(await send(reader, "POST", "/v1/instances", {"image": "web"}), 403)
        assert "scope 'write'" in refused["message"]
        await send(http, "DELETE", "/torpor/v1/tokens", [{"name": "ci"}])
        assert (await reader.get("/v1/instances")).status_code == 401
    listed = await body(await http.get("/torpor/v1/tokens"))
    assert "token" not in listed["data"]["tokens"][0]


async def test_only_hashes_are_in_the_database(server: Service, data_dir: Path, token: str) -> None:
    assert server
    names = ("torpor.db", "torpor.db-wal")
    content = b"".join((data_dir / name).read_bytes() for name in names)
    assert token.encode() not in content
    assert (data_dir / "token").stat().st_mode & 0o777 == 0o600


async def test_a_set_up_that_died_half_way_is_done_again(tmp_path: Path) -> None:
    kept: list[str] = []

    def fail(token: str) -> None:
        kept.append(token)
        raise OSError("the disk is full")

    store = Store(tmp_path)
    try:
        with pytest.raises(OSError, match="the disk is full"):
            await ensure_first_token(store, fail)
        await ensure_first_token(store, kept.append)
        await ensure_first_token(store, kept.append)
        assert len(kept) == 2
        assert authenticate(store, f"Bearer {kept[0]}") is None
        principal = authenticate(store, f"Bearer {kept[1]}")
        assert principal is not None
        assert principal.owner.name == "default"
    finally:
        store.close()


async def test_users_are_apart_and_have_quotas(server: Service, http: httpx.AsyncClient) -> None:
    made = await body(await send(http, "POST", "/torpor/v1/tokens", {"name": "eve", "user": "eve"}))
    headers = {"Authorization": f"Bearer {made['data']['tokens'][0]['token']}"}
    await send(http, "POST", "/v1/instances", {"image": "web", "name": "mine"})
    quotas = {"user": "eve", "quotas": {"instances": 1}}
    assert (await body(await send(http, "PUT", "/torpor/v1/quotas", quotas)))["status"] == "success"
    async with httpx.AsyncClient(base_url=server.endpoint, headers=headers) as eve:
        assert (await body(await eve.get("/v1/instances")))["data"]["instances"] == []
        answer = await body(await send(eve, "DELETE", "/v1/instances", [{"name": "mine"}]))
        assert answer["data"]["instances"][0]["error"] == 8
        answer = await body(await send(eve, "POST", "/v1/instances", [{"image": "web"}] * 2))
        assert [item.get("error") for item in answer["data"]["instances"]] == [None, 19]


async def test_the_local_socket_needs_no_token(server: Service, data_dir: Path) -> None:
    assert server
    path = data_dir / "run" / "api.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(base_url="http://torpor", transport=transport) as local:
        assert (await local.get("/torpor/v1/tokens")).status_code == 200


def test_the_local_socket_is_for_its_own_user_and_root() -> None:
    """Another user's process is refused by what the kernel says of it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    here, there = socket.socketpair()
    with here, there:
        assert server_module._allowed(here)
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind("\0torpor-test-peer")
        listener.listen(1)
        code = "import os,socket;os.setuid(65534);s=socket.socket(socket.AF_UNIX);"
        code += "s.connect('\\0torpor-test-peer');s.recv(1)"
        with subprocess.Popen([sys.executable, "-c", code]) as child:
            other, _ = listener.accept()
            with other:
                assert not server_module._allowed(other)
            child.wait()


async def test_the_openapi_document_is_served(http: httpx.AsyncClient) -> None:
    document = await body(await http.get("/openapi.json"))
    assert document["openapi"] == "3.1.0"
    assert "/v1/instances/{uuid}/log" in document["paths"]

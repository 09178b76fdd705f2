"""Instances through the official SDK, unmodified."""

import asyncio
import base64
from typing import Any

import pytest
from unikraft_cloud import REMOVE, InstanceStoppedError
from unikraft_cloud.core.errors import (
    AlreadyExistsError,
    NotFoundError,
    UnikraftCloudError,
    WaitTimeoutError,
)

from tests.fake_vm import FakeHost
from torpor.api.service import Service
from torpor.controller.links import Waiting
from torpor.controller.vm import Exit

pytestmark = pytest.mark.anyio

SERVED = {"service_group": {"services": [{"port": 443, "destination_port": 8080}]}}
"""What has a service runs when it listens; what has none runs when it is started."""


async def test_a_life(sdk: Any, host: FakeHost) -> None:
    made = await sdk.instances.create(name="web", image="web", memory_mb=256, env={"A": "1"})
    assert (made.state, made.name, made.memory_mb, made.vcpus) == ("stopped", "web", 256, 1)
    handle = sdk.instances.get(name="web")
    started = await handle.start()
    assert started.previous_state == "stopped"
    waited = await sdk.instances.get(name="web").wait(state="running", timeout_seconds=20)
    assert waited.state == "running"
    assert host.running[made.uuid].env == {"PATH": "/bin", "A": "1"}
    suspended = await sdk.instances.get(uuid=made.uuid).suspend()
    assert (suspended.previous_state, suspended.state) == ("running", "standby")
    assert not host.running
    asleep = await sdk.instances.get(name="web")
    assert (asleep.state, asleep.stop_reason) == ("standby", 39)
    await sdk.instances.get(name="web").start()
    assert host.running[made.uuid].memory["lives"] == 2
    stopped = await sdk.instances.get(name="web").stop()
    assert stopped.previous_state == "running"
    await sdk.instances.get(name="web").wait(state="stopped", timeout_seconds=20)
    ended = await sdk.instances.get(name="web")
    assert (ended.state, ended.stop_reason, ended.exit_code) == ("stopped", 15, 0)
    logs = await sdk.instances.get(name="web").logs()
    assert base64.b64decode(logs.output) == b"life 1 of web\nlife 2 of web\n"
    deleted = await sdk.instances.get(name="web").delete()
    assert deleted.previous_state == "stopped"
    assert await sdk.instances.list() == []


async def test_missing_ones_are_absent_not_broken(sdk: Any) -> None:
    with pytest.raises(NotFoundError) as caught:
        await sdk.instances.get(name="nobody")
    assert caught.value.absent
    assert await sdk.instances.get(name="nobody").delete(missing_ok=True) is None
    with pytest.raises(NotFoundError):
        await sdk.instances.get(uuid="5f0c9f57-6b0c-4c53-9d38-2f2a5a3b9d11")
    with pytest.raises(NotFoundError) as caught:
        await sdk.instances.create(image="no-such-image")
    assert "no-such-image" in str(caught.value)


async def test_a_name_in_use(sdk: Any) -> None:
    await sdk.instances.create(name="web", image="web")
    with pytest.raises(AlreadyExistsError, match="'web' already exists"):
        await sdk.instances.create(name="web", image="web")


async def test_listing_pages_and_tags(sdk: Any) -> None:
    bodies = [{"name": f"i{number}", "image": "web", "tags": ["even"] if number % 2 == 0 else []}
              for number in range(25)]  # fmt: skip
    for body in bodies:
        await sdk.instances.create(**body)
    names = [instance.name for instance in await sdk.instances.list(page_size=7)]
    assert names == [body["name"] for body in bodies]
    even = await sdk.instances.list(tags=["even"], page_size=3)
    assert [instance.name for instance in even] == [f"i{number}" for number in range(0, 25, 2)]
    removed = await sdk.instances.each(tags=["even"]).delete(missing_ok=True)
    assert len(removed) == 13
    assert len(await sdk.instances.list()) == 12


async def test_a_wait_that_ends_is_a_timeout(sdk: Any) -> None:
    await sdk.instances.create(name="web", image="web")
    with pytest.raises(WaitTimeoutError) as caught:
        await sdk.instances.get(name="web").wait(state="running", timeout_seconds=0)
    assert caught.value.state == "stopped"


async def test_create_waits_for_running(sdk: Any) -> None:
    made = await sdk.instances.create(image="web", autostart=True, timeout_s=30)
    assert made.state == "running"
    with pytest.raises(WaitTimeoutError) as caught:
        await sdk.instances.create(
            image="web", autostart=True, timeout_s=1, env={"FAKE_READY": "never"}, **SERVED
        )
    assert caught.value.state == "starting"


async def test_create_of_what_stops_at_once(sdk: Any) -> None:
    with pytest.raises(InstanceStoppedError) as caught:
        await sdk.instances.create(
            image="web", autostart=True, timeout_s=30, env={"FAKE_EXIT": "7"}, **SERVED
        )
    assert caught.value.instance.state == "stopped"
    assert (caught.value.instance.stop_reason, caught.value.instance.exit_code) == (3, 7)


async def test_stop_reasons(sdk: Any, host: FakeHost) -> None:
    async def ended_by(name: str, result: Exit) -> tuple[Any, Any, Any]:
        made = await sdk.instances.create(name=name, image="web", autostart=True, timeout_s=30)
        host.running[made.uuid].end(result)
        await sdk.instances.get(name=name).wait(state="stopped", timeout_seconds=20)
        read = await sdk.instances.get(name=name)
        return read.stop_reason, read.exit_code, read.stop_code

    assert await ended_by("a", Exit("exit", 3)) == (3, 3, None)
    assert await ended_by("b", Exit("signal", 11)) == (1, 139, None)
    assert await ended_by("c", Exit("out-of-memory", 9)) == (1, 137, 0x000C7F04)
    await sdk.instances.create(name="d", image="web", autostart=True, timeout_s=30)
    await sdk.api.platform.instances.stop_instances(body=[{"name": "d", "force": True}])
    await sdk.instances.get(name="d").wait(state="stopped", timeout_seconds=20)
    assert (await sdk.instances.get(name="d")).stop_reason == 28


async def test_restart_policy(sdk: Any, host: FakeHost) -> None:
    made = await sdk.instances.create(
        image="web", restart_policy="always", autostart=True, timeout_s=30
    )
    for _ in range(3):
        host.running[made.uuid].end(Exit("exit", 0))
        await host.next_start(made.uuid)
    read = await sdk.instances.get(uuid=made.uuid)
    assert read.restart_count == 3
    await sdk.instances.get(uuid=made.uuid).stop()
    await sdk.instances.get(uuid=made.uuid).wait(state="stopped", timeout_seconds=20)
    assert made.uuid not in host.running


async def test_an_edit_of_a_running_instance_waits_for_its_end(sdk: Any) -> None:
    await sdk.instances.create(name="web", image="web", env={"A": "1"}, autostart=True, timeout_s=9)
    await sdk.instances.get(name="web").update(memory_mb=512, tags=["blue"], delete_lock=True)
    await sdk.instances.get(name="web").edit().add(env={"B": "2"}).delete(env=["A"]).apply()
    read = await sdk.instances.get(name="web")
    assert (read.memory_mb, read.env, read.tags) == (128, {"A": "1"}, ["blue"])
    assert [update.prop for update in read.updates] == ["memory_mb", "env", "env"]
    with pytest.raises(UnikraftCloudError, match="Deletion protection enabled"):
        await sdk.instances.get(name="web").delete()
    await sdk.instances.get(name="web").suspend()
    read = await sdk.instances.get(name="web")
    assert (read.memory_mb, read.env, read.updates) == (512, {"B": "2"}, None)
    await sdk.instances.get(name="web").update(delete_lock=REMOVE)
    await sdk.instances.get(name="web").delete()


async def test_checkpoints_and_branches(sdk: Any, host: FakeHost) -> None:
    api = sdk.api.platform.instances
    await sdk.instances.create(name="web", image="web", autostart=True, timeout_s=30)
    answer = await api.create_checkpoint_instances(body=[{"from": {"name": "web"}, "name": "cp"}])
    assert answer.data.instances[0].state == "checkpoint"
    again = await api.create_checkpoint_instances(body=[{"from": {"name": "web"}, "name": "cp"}])
    assert again.data.instances[0].error == 23
    loaded = await sdk.instances.create(name="loaded", checkpoint={"name": "cp"})
    assert loaded.state == "standby"
    await sdk.instances.get(name="loaded").start()
    assert host.running[loaded.uuid].memory["lives"] == 2
    read = await sdk.instances.get(name="loaded")
    assert (read.start_count, read.stop_reason) == (1, None)
    assert read.uptime_ms < 60_000, "it counts from its own start"
    branch = await sdk.instances.create(name="branch", branch_from={"name": "web"})
    assert branch.state == "standby"
    (history,) = await sdk.instances.get(name="loaded").history()
    assert [entry.name for entry in history.history] == ["cp"]
    with pytest.raises(UnikraftCloudError, match="Cannot specify 'image'"):
        await sdk.instances.create(image="web", branch_from={"name": "web"})
    await sdk.instances.get(name="web").delete()
    listed = await api.get_checkpoint_instances()
    assert [each.name for each in listed.data.instances] == ["cp"]


async def test_templates(sdk: Any, host: FakeHost) -> None:
    template = await sdk.templates.prepare(
        "worker", create_args={"image": "web", "memory_mb": 64, "tags": ["t"]}
    )
    assert (template.name, template.state) == ("worker", "template")
    again = await sdk.templates.prepare("worker", create_args={"image": "web"})
    assert again.uuid == template.uuid
    assert await sdk.instances.list() == []
    clone = await sdk.templates.get(name="worker").clone(name="clone", autostart=True)
    await sdk.instances.get(name="clone").wait(state="running", timeout_seconds=20)
    read = await sdk.instances.get(name="clone")
    assert read.memory_mb == 64
    assert host.running[read.uuid].memory["lives"] == 2
    assert clone
    await sdk.instances.create(name="other", branch_from={"name": "clone"})
    with pytest.raises(UnikraftCloudError, match="'clone', 'other' begin with template 'worker'"):
        await sdk.templates.get(name="worker").delete()
    await sdk.instances.get(name="clone").delete()
    await sdk.instances.get(name="other").delete()
    await sdk.templates.get(name="worker").delete()
    assert await sdk.templates.list() == []


async def test_services(sdk: Any, server: Service) -> None:
    made = await sdk.instances.create(
        name="web",
        image="web",
        service_group={"services": [{"port": 443, "destination_port": 8080}]},
        scale_to_zero={"policy": "on", "stateful": True},
    )
    (domain,) = made.service_group.domains
    assert domain.fqdn.endswith(".localhost")
    assert server.store.services.by_domain(domain.fqdn) is not None
    (group,) = await sdk.services.list()
    assert group.persistent is False
    assert set(group.services[0].handlers) == {"http", "tls"}
    await sdk.instances.get(name="web").delete()
    assert await sdk.services.list() == []
    kept = await sdk.services.create(
        name="api", services=[{"port": 443, "destination_port": 80}], domains=[{"name": "a.b."}]
    )
    assert [domain.fqdn for domain in kept.domains] == ["a.b"]
    await sdk.services.get(name="api").update(soft_limit=5)
    assert (await sdk.services.get(name="api")).soft_limit == 5
    with pytest.raises(UnikraftCloudError, match="port 80 must have handler http"):
        await sdk.services.create(services=[{"port": 80, "handlers": ["tls"]}])
    await sdk.services.get(name="api").delete()


async def test_many_at_once(sdk: Any) -> None:
    answer = await sdk.api.platform.instances.create_instance(
        body={"image": "web", "name": "n", "replicas": 999}
    )
    assert len(answer.data.instances) == 1000
    assert answer.status == "success"
    assert len({instance.uuid for instance in answer.data.instances}) == 1000


async def test_metrics_and_quotas(sdk: Any) -> None:
    await sdk.instances.create(name="web", image="web", autostart=True, timeout_s=30)
    metrics = await sdk.instances.get(name="web").metrics()
    assert (metrics.rss_bytes, metrics.cpu_time_ms) == (4096, 5)
    quotas = await sdk.api.platform.users.get_user()
    assert quotas.data.quotas[0].used.live_instances == 1


async def test_audit(sdk: Any) -> None:
    seen = []

    async def follow() -> None:
        async for event in sdk.api.platform.audit.subscribe_audit_events():
            seen.append((event.data.prev, event.data.new))
            if event.data.new == "running":
                return

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.2)  # nothing is replayed: the stream has to be open
    await sdk.instances.create(name="web", image="web", autostart=True, timeout_s=30)
    await asyncio.wait_for(following, 30)
    assert seen == [("stopped", "starting"), ("starting", "running")]


async def test_what_has_no_effect_is_said(http: Any) -> None:
    async def warnings(method: str, path: str, body: Any) -> list[str]:
        answer = (await http.request(method, path, json=body)).json()
        assert answer["status"] == "success", answer
        return [each["message"] for each in answer.get("warnings", [])]

    two = [{"name": name, "image": "web", "sched_priority": "high"} for name in ("a", "b")]
    (warning,) = await warnings("POST", "/v1/instances", two)
    assert "sched_priority" in warning
    usual = {"name": "c", "image": "web", "sched_priority": "normal"}
    assert await warnings("POST", "/v1/instances", usual) == []
    change = {"name": "c", "prop": "sched_priority", "op": "set", "value": "medium"}
    assert await warnings("PATCH", "/v1/instances", change) == [warning]
    start = {"name": "c", "wait_timeout_ms": 10_000}
    (deprecated,) = await warnings("PUT", "/v1/instances/start", start)
    assert "timeout_s" in deprecated


async def test_warnings_reach_users_of_the_sdk(sdk: Any) -> None:
    with pytest.warns(UserWarning, match="sched_priority"):
        await sdk.instances.create(name="web", image="web", sched_priority="high")


async def test_what_waits_is_counted_by_instance_and_group(
    server: Service, sdk: Any, http: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = {"services": [{"port": 443}, {"port": 5432, "handlers": []}]}
    service["domains"] = [{"name": "web"}]
    made = await sdk.instances.create(name="web", image="web", service_group=service)
    wide = {"services": [{"port": 443}], "domains": [{"name": "*.localhost."}]}
    await sdk.instances.create(name="wide", image="web", service_group=wide)
    alone = await sdk.instances.create(name="alone", image="web")
    knows = True

    async def stats(after: str | None) -> dict[str, Any]:  # noqa: ARG001
        return {"links": [], "wakes": 0, "wake_us": [], "waiting": 15}

    async def waiting() -> list[Waiting]:
        if not knows:
            raise TimeoutError
        hosts = (("web.localhost", 1), (":5432", 2), ("other.localhost", 4), ("no.where", 8))
        return [
            Waiting(16, instance=alone.uuid),
            *(Waiting(requests, host=host) for host, requests in hosts),
        ]

    async def queued() -> list[int | None]:
        names, json_type = "name=web&name=wide&name=alone", "application/json"
        path = f"/v1/instances/metrics?{names}"
        answer = (await http.get(path, headers={"Accept": json_type})).json()
        return [each.get("nqueued") for each in answer["data"]["instances"]]

    assert await queued() == [None] * 3  # without a proxy nobody knows
    monkeypatch.setattr(server.controller.links, "stats", stats)
    monkeypatch.setattr(server.controller.links, "waiting", waiting)
    assert await queued() == [3, 4, 16]
    text = (await http.get("/v1/instances/metrics?name=web")).text
    assert f'instance_nqueued{{instance_uuid="{made.uuid}"}} 3\n' in text
    knows = False
    assert await queued() == [None] * 3


async def test_wakes_are_counted_by_how_long_they_took(sdk: Any, http: Any) -> None:
    made = await sdk.instances.create(name="web", image="web", autostart=True)
    handle = sdk.instances.get(name="web")
    for _ in range(3):
        await handle.wait(state="running", timeout_seconds=30)
        await handle.suspend()
        await handle.start()
    path = f"/v1/instances/{made.uuid}/metrics"
    answer = (await http.get(path, headers={"Accept": "application/json"})).json()
    (metrics,) = answer["data"]["instances"]
    buckets = metrics["wakeup_latency"]
    assert [each.get("bucket_ms") for each in buckets] == [*(1 << n for n in range(13)), None]
    assert sum(each["count"] for each in buckets) == 3
    assert metrics["ntotal"] == 0
    text = (await http.get(path)).text
    labels = f'instance_uuid="{made.uuid}"'
    assert f'instance_wakeup_latency_bucket{{{labels},le="+Inf"}} 3\n' in text
    assert f"instance_wakeup_latency_count{{{labels}}} 3\n" in text

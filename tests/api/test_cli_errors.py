"""What the command line says where something is not as it should be."""

import asyncio
from pathlib import Path

import pytest
from tests.api.command import call, torpor
from tests.fake_vm import FakeHost

from torpor.api.service import Service
from torpor.controller.vm import Exit

pytestmark = pytest.mark.anyio


async def test_a_deployment_where_nobody_listens(server: Service, data_dir: Path) -> None:
    assert server
    ports = ("-p", "80:8080", "-p", "443:8080", "-p", "6379:99/tcp")
    words = ("deploy", "web", *ports, "-e", "FAKE_READY=never")
    done = await call(data_dir, *words, "-n", "app")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)
    assert "warning: app: nobody listened on port 8080, 99 within 10 s" in done.stderr
    for remedy in ("at 0.0.0.0, not", "-p HOST:GUEST", "`torpor instance logs app`"):
        assert remedy in done.stderr
    done = await call(data_dir, "deploy", "web", "-p", "80:8080", "-n", "other")
    assert done.stderr == "other running\n"


async def test_a_deployment_that_does_not_run_says_why(server: Service, data_dir: Path) -> None:
    assert server
    words = ("deploy", "web", "-n", "app", "-p", "80:8080", "-e", "FAKE_EXIT=3")
    why = "app: The instance ended before it was ready; its program ended with status 3; "
    assert await torpor(data_dir, *words, status=125) == (
        f"torpor: {why}it is kept, stopped: `torpor instance logs app` shows its log, `torpor "
        "deploy -n app` puts another in its place, and `torpor instance rm app` removes it\n"
    )
    assert [line.split()[2] for line in await _listed(data_dir)] == ["stopped"]
    await torpor(data_dir, *words[:-1], "FAKE_READY=at once")
    # A new version that does not run leaves the former one.
    refused = await torpor(data_dir, *words, status=125)
    assert refused == f"torpor: {why}that one is removed, and the former one is as it was\n"
    assert [line.split()[::2][:2] for line in await _listed(data_dir)] == [["app", "running"]]


async def test_a_new_version_whose_port_is_taken(server: Service, data_dir: Path) -> None:
    """It ran already; the former one does still, and is alone."""
    assert server
    await torpor(data_dir, "deploy", "web", "-n", "redis", "-p", "6379/tcp")
    await torpor(data_dir, "deploy", "web", "-n", "app", "-p", "80:8080")
    refused = await torpor(data_dir, "deploy", "web", "-n", "app", "-p", "6379/tcp", status=125)
    assert refused.startswith("torpor: app: Port 6379 is in use by ")
    assert [line.split()[0] for line in await _listed(data_dir)] == ["redis", "app"]


async def test_a_deployment_with_too_little_memory(
    server: Service, data_dir: Path, host: FakeHost
) -> None:
    assert server
    words = ("deploy", "web", "-n", "app", "-p", "80:8080", "-M", "64", "-e", "FAKE_READY=never")
    deploying = asyncio.create_task(torpor(data_dir, *words, status=125))
    await host.started.wait()
    (vm,) = host.running.values()
    vm.end(Exit("signal", 9))
    refused = await deploying
    assert "ended with status 137: if 64 MiB are too little for it, --memory gives it" in refused


async def _listed(data_dir: Path) -> list[str]:
    return (await torpor(data_dir, "instance", "list")).splitlines()[1:]

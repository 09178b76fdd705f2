"""What the command line says where something is not as it should be."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tests.api.command import call, torpor
from tests.fake_vm import FakeHost
from torpor.api.service import Service
from torpor.cli.server import is_unit, left_running
from torpor.controller.rules import MEMORY_MB
from torpor.controller.vm import Exit

MEMORY = "{} to {}".format(*MEMORY_MB)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (
            ("instance", "create", "web", "-M", "0"), 1,
            f"torpor: request: option '-M' / '--memory' is 0: must be {MEMORY} MiB\n",
        ),
        (
            ("instance", "create", "web", "-M", "65G"), 1,
            f"torpor: request: option '-M' / '--memory' is 65G: must be {MEMORY} MiB\n",
        ),
        (
            ("instance", "create", "web", "-M", "1.3k"), 125,
            ("torpor: option '-M' / '--memory' needs whole MiB, as 256, 256M or 1G, not '1.3k'\n"),
        ),
        (
            ("instance", "wait", "web", "--timeout", "2d"), 125,
            ("torpor: option '--timeout' needs a time as 2 (s), 1000ms, 5s or 1m, or -1 for ever, "
            "not '2d'\n"),
        ),
        (
            ("instance", "create", "web", "--replicas", "20000"), 125,
            "torpor: option '--replicas' is 20000: must be at most 10000\n",
        ),
        (
            ("instance", "create", "web", "-n", "-x-"), 1,
            ("torpor: -x-: option '-n' / '--name' is '-x-': must have 1 to 255 letters, digits, "
            "'.', '_' or '-', and begin and end with a letter or digit\n"),
        ),
        (
            ("instance", "create", "web", "--tag", "a", "--tag", "b c"), 1,
            ("torpor: request: option '--tag' is 'a', 'b c': must be 1 to 256 letters, digits, "
            "'-', '+', '_', '.', ':', '='\n"),
        ),
        (  # before it is built
            ("deploy", "./nowhere", "-M", "65G"), 125,
            f"torpor: option '-M' / '--memory' is 65G: must be {MEMORY} MiB\n",
        ),
        (
            ("deploy", "web", "-p", "80:8080", "--cooldown", "25h"), 125,
            "torpor: option '--cooldown' needs a time as 1000ms, 5s or 1m, not '25h'\n",
        ),
        (
            ("deploy", "web", "-p", "80:8080", "--cooldown", "1441m"), 125,
            "torpor: option '--cooldown' is 1441m: must be 1 to 86400000 ms\n",
        ),
        (
            ("deploy", "web", "-p", "80:0"), 125,
            "torpor: option '-p' / '--port' is '80:0': must be 1 to 65535\n",
        ),
        (
            ("service", "create", "api", "-p", "443:8080", "-d", "a b"), 125,
            "torpor: option '-d' / '--domain' holds 'a b': not a host name\n",
        ),
        (
            ("template", "create", "t", "web", "-M", "1"), 125,
            f"torpor: option '-M' / '--memory' is 1: must be {MEMORY} MiB\n",
        ),
        (
            ("token", "create", "x-"), 125,
            ("torpor: argument 'NAME' is 'x-': must have 1 to 255 letters, digits, '.', '_' or "
            "'-', and begin and end with a letter or digit\n"),
        ),
        # Words that only look like fields are left as they are.
        (
            ("instance", "stop", "memory_mb"), 125,
            "torpor: No instance is 'memory_mb': there is none\n",
        ),
    ],
)  # fmt: skip
async def test_a_limit_is_told_of_the_option(
    server: Service, data_dir: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    assert server
    assert await torpor(data_dir, *words, status=status) == said


async def test_what_goes_with_no_template_is_told_of_the_option(
    server: Service, data_dir: Path
) -> None:
    assert server
    await torpor(data_dir, "template", "create", "t", "web")
    refused = await torpor(data_dir, "instance", "create", "--template", "t", "-M", "64", status=1)
    assert "Cannot specify '-M' / '--memory' when creating from a template" in refused
    for words in (("web", "--template", "t"), ()):
        refused = await torpor(data_dir, "instance", "create", *words, status=125)
        assert "--template" in refused
        assert "IMAGE" in refused


async def test_a_template_that_instances_begin_with_stays(server: Service, data_dir: Path) -> None:
    assert server
    await torpor(data_dir, "template", "create", "seed", "web")
    words = ("instance", "create", "--template", "seed", "-n", "c", "--replicas", "4")
    await torpor(data_dir, *words)
    refused = await torpor(data_dir, "template", "rm", "-y", "seed", status=1)
    who = "'c', 'c-1', 'c-2' and 2 more begin"
    assert refused == f"torpor: seed: {who} with template 'seed': delete them first\n"
    assert "seed" in await torpor(data_dir, "template", "list")
    await torpor(data_dir, "instance", "rm", "-y", "c", "c-1", "c-2", "c-3")
    refused = await torpor(data_dir, "template", "rm", "-y", "seed", status=1)
    assert refused == "torpor: seed: 'c-4' begins with template 'seed': delete it first\n"
    await torpor(data_dir, "instance", "rm", "-y", "c-4")
    assert await torpor(data_dir, "template", "rm", "-y", "seed") == "seed removed\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("instance", "list"), "torpor --data DIR instance list"),
        (("deploy", "web"), "torpor --data DIR deploy"),
        (("up",), "torpor --data DIR up"),
        (("vm", "list"), "torpor --data DIR vm list"),
    ],
)
async def test_the_data_directory_behind_the_command(
    data_dir: Path, words: tuple[str, ...], said: str
) -> None:
    for behind in (("--data", "elsewhere"), ("--data=elsewhere",)):
        refused = await torpor(data_dir, *words, *behind, status=2)
        assert f"option '--data' goes before the command: {said}" in refused
    refused = await torpor(data_dir, *words, "--dat", status=2)
    assert "No such option" in refused


@pytest.mark.parametrize(
    "metro",
    ["fra0", "127.0.0.1:7400", "http://", "ftp://127.0.0.1:7400", "http://127.0.0.1:74000"],
)
async def test_a_metro_that_is_no_url(server: Service, data_dir: Path, metro: str) -> None:
    """It would lead to the data directory's server otherwise, which is another one."""
    assert server
    environment = {"UKC_METRO": metro, "UKC_TOKEN": "x"}
    refused = await torpor(data_dir, "instance", "list", status=125, env=environment)
    assert f"UKC_METRO is '{metro}': must be the URL of a server, as http://" in refused


@pytest.mark.parametrize("token", ["ü", "two\nlines"])
async def test_a_token_that_can_be_none(data_dir: Path, token: str) -> None:
    environment = {"UKC_METRO": "http://127.0.0.1:9", "UKC_TOKEN": token}
    refused = await torpor(data_dir, "instance", "list", status=125, env=environment)
    assert refused.startswith("torpor: UKC_TOKEN must be a token as `torpor token create`")


async def test_nobody_answers_where_the_metro_is(data_dir: Path) -> None:
    environment = {"UKC_METRO": "HTTP://127.0.0.1:9", "UKC_TOKEN": "x"}
    refused = await torpor(data_dir, "instance", "list", status=125, env=environment)
    assert "no server answers at" in refused
    assert "UKC_METRO" in refused
    assert "torpor up" not in refused, "that starts another one"


async def test_a_server_without_its_supervisor(tmp_path: Path) -> None:
    addresses = [
        word for name in ("listen", "proxy", "proxy-tls") for word in (f"--{name}", "127.0.0.1:0")
    ]
    await torpor(tmp_path, "up", *addresses)
    try:
        done = await call(tmp_path, "status")
        assert "supervisor: running\n" in done.stdout
        assert done.stderr == ""
        os.kill(int((tmp_path / "run" / "supervisor.pid").read_text()), 9)
        done = await call(tmp_path, "status")
        assert (done.returncode, "supervisor: absent\n" in done.stdout) == (0, True)
        assert "nobody starts torpord or the proxy again" in done.stderr
        assert "`torpor down --now` and `torpor up`" in done.stderr
        os.kill(int((tmp_path / "run" / "torpord.lock").read_text()), 9)
        refused = await torpor(tmp_path, "status", status=125)
        assert "torpord does not answer" in refused
        assert "`torpor down --now`" in refused
    finally:
        await torpor(tmp_path, "down", "--now")
    assert "`torpor up` starts one" in await torpor(tmp_path, "status", status=125)


def test_who_is_a_unit_of_systemds() -> None:
    assert is_unit("0::/system.slice/torpord.service\n")
    assert is_unit("2:cpu:/\n1:name=systemd:/system.slice/torpord.service\n")
    assert not is_unit("0::/user.slice/user-0.slice/session-3.scope\n")
    assert not is_unit("")


def test_one_vm_is_one() -> None:
    assert left_running(1).startswith("1 VM did not end in time and runs on")
    assert left_running(2).startswith("2 VMs did not end in time and run on")


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


async def test_a_new_version_is_called_as_the_former_one(
    server: Service, data_dir: Path, host: FakeHost
) -> None:
    """Its program, too, although another has the name while it starts."""
    assert server
    for version in ("1", "2"):
        await torpor(data_dir, "deploy", "web", "-n", "app", "-p", "80:8080", "-e", f"V={version}")
        (vm,) = host.running.values()
        assert (vm.name, vm.env["V"]) == ("app", version)


async def test_what_is_not_found_has_a_hint(server: Service, data_dir: Path) -> None:
    assert server
    for name in ("b1", "b2", "web-server", "x"):
        await torpor(data_dir, "instance", "create", "web", "-n", name)
    await torpor(data_dir, "checkpoint", "create", "x", "before")
    for words, said in (
        (
            ("instance", "get", "web-sever"),
            "No instance is 'web-sever': there are 'web-server', ...",
        ),
        (
            ("instance", "logs", "nosuch"),
            "No instance is 'nosuch': there are 'b1', 'b2', 'web-server', ...",
        ),
        (
            ("instance", "rm", "-y", "b1", "b2", "b3"),
            "No instance is 'b3': there are 'b1', 'b2', 'web-server', ...; none is removed",
        ),
        (
            ("instance", "stop", "x", "b3"),
            "No instance is 'b3': there are 'b1', 'b2', 'web-server', ...; none is stopped",
        ),
        (("checkpoint", "rm", "-y", "cp"), "No checkpoint is 'cp': there is 'before'"),
        (("checkpoint", "restore", "after"), "No checkpoint is 'after': there is 'before'"),
        (("instance", "create", "--template", "t"), "No template is 't': there is none"),
        (("service", "rm", "-y", "s"), "No service is 's': there is none"),
    ):
        assert await torpor(data_dir, *words, status=125) == f"torpor: {said}\n"


async def test_a_quota_that_there_is_not(server: Service, data_dir: Path) -> None:
    assert server
    refused = await torpor(data_dir, "quota", "set", "default", "user=1", status=125)
    assert refused.startswith("torpor: 'user=1': there is no quota 'user'; there are instances, ")


async def test_what_cannot_be_deployed_is_not_built(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    done = await call(data_dir, "deploy", f"{tmp_path}")
    said = f"torpor: {tmp_path} exposes no TCP port: say which with -p 443:PORT -p 80:PORT\n"
    assert (done.stderr, done.returncode) == (said, 125)
    refused = await torpor(data_dir, "deploy", f"{tmp_path}/Dockerfile", status=125)
    assert "Dockerfile: not a directory: give one" in refused


async def test_a_host_is_called_as_its_instance(server: Service, data_dir: Path) -> None:
    assert server
    await torpor(data_dir, "deploy", "web", "-p", "80:8080")
    await torpor(data_dir, "instance", "create", "web", "-p", "80:8080")
    rows = [line.split() for line in await _listed(data_dir)]
    assert [row[-1] for row in rows] == [f"{row[0]}.localhost" for row in rows]
    assert len(rows) == 2


async def test_what_a_new_version_waits_for_is_said(
    server: Service, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("deploy", "web", "-n", "app", "-p", "6379/tcp")
    assert (await call(data_dir, *words)).stderr == "app running\n"
    assert (await call(data_dir, *words)).stderr == "app running\n"

    async def stats(after: str | None) -> dict[str, Any]:
        counts = {"in_flight": 1, "connections": 2, "requests": 9, "rx_bytes": 0, "tx_bytes": 0}
        links = [
            {"instance": live.row.uuid, "generation": live.link_generation, **counts}
            for live in server.controller.lifecycle.lives.all()
        ]
        return {"links": [] if after else links, "waiting": 0}

    monkeypatch.setattr(server.controller.links, "stats", stats)
    done = await call(data_dir, *words)
    waits = "app: waiting for the former version's 1 open request and 2 open connections, 10 s at"
    assert done.stderr.startswith(waits)


async def test_plain_tcp_has_a_port_of_its_own(server: Service, data_dir: Path) -> None:
    assert server
    refused = await torpor(data_dir, "deploy", "web", "-p", "80:8080/tcp", status=125)
    assert "'80:8080/tcp': ports 80 and 443 are for HTTP by host names" in refused
    assert "as 8080/tcp" in refused


async def test_a_deployment_with_too_little_memory(
    server: Service, data_dir: Path, host: FakeHost
) -> None:
    assert server
    words = ("deploy", "web", "-n", "app", "-p", "80:8080", "-M", "64", "-e", "FAKE_READY=never")
    deploying = asyncio.create_task(torpor(data_dir, *words, status=125))
    await host.started.wait()
    (vm,) = host.running.values()
    vm.end(Exit("out-of-memory", 9))
    refused = await deploying
    assert "; 64 MiB are too little for it: --memory gives it more; it is kept, stopped" in refused


async def _listed(data_dir: Path) -> list[str]:
    return (await torpor(data_dir, "instance", "list")).splitlines()[1:]

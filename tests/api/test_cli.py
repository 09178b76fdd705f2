"""The command line, as processes, against a server."""

import asyncio
import json
import os
import re
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.api.command import call, torpor
from tests.fake_vm import FakeHost
from tests.harness import TORPOR
from torpor.api.service import Service
from torpor.controller.vm import Exit
from torpor.images.store import ImageStore

pytestmark = pytest.mark.anyio


async def test_a_session(server: Service, data_dir: Path) -> None:
    assert server
    made = json.loads(
        await torpor(data_dir, "instance", "create", "web", "-n", "a", "--start", "-o", "json")
    )
    prefix = made[0]["uuid"][:8]
    assert "a running" in await torpor(data_dir, "instance", "wait", prefix)
    await torpor(data_dir, "instance", "create", "web", "-n", "b", "-e", "K=V")
    assert "a running -> standby" in await torpor(data_dir, "instance", "suspend", "a")
    listed = await torpor(data_dir, "instance", "list", "--state", "standby", "-o", "yaml")
    assert "name: a" in listed
    assert "name: b" not in listed
    table = await torpor(data_dir, "instance", "list")
    assert len(re.findall(r"T\d\d:\d\d:\d\dZ", table)) == 2
    assert await torpor(data_dir, "instance", "logs", "a") == "life 1 of a\n"
    assert "1 standby" in await torpor(data_dir, "status")
    assert "--yes" in await torpor(data_dir, "instance", "rm", "a", status=125)
    assert (await torpor(data_dir, "top")).count("RUNNING") == 1
    refused = await torpor(data_dir, "instance", "rm", "-y", "a", "nobody", status=125)
    assert refused == "torpor: No instance is 'nobody': there are 'a', 'b'; none is removed\n"
    removed = await torpor(data_dir, "instance", "rm", "-y", "a", "b")
    assert removed == "a removed\nb removed\n"


async def test_logs_are_followed(server: Service, data_dir: Path, host: FakeHost) -> None:
    assert server
    words = ("instance", "create", "web", "-n", "a", "--start", "-o", "json")
    (made,) = json.loads(await torpor(data_dir, *words))
    await torpor(data_dir, "instance", "wait", "a")
    following = await asyncio.create_subprocess_exec(
        TORPOR, "--data", data_dir, "instance", "logs", "-f", "a", stdout=subprocess.PIPE
    )
    assert following.stdout is not None
    assert await asyncio.wait_for(following.stdout.readline(), 60) == b"life 1 of a\n"
    for line in (b"one\n", b"two\n"):
        host.running[made["uuid"]].listener.output(line)
        assert await asyncio.wait_for(following.stdout.readline(), 60) == line
    await torpor(data_dir, "instance", "rm", "-y", "a")
    assert await asyncio.wait_for(following.wait(), 60) == 1, "there is nothing more to come"


@pytest.mark.parametrize("how", ["exit", "stop", "never started"])
async def test_what_has_ended_is_not_followed(
    server: Service, data_dir: Path, host: FakeHost, how: str
) -> None:
    assert server
    begun = () if how == "never started" else ("--start",)
    await torpor(data_dir, "instance", "create", "web", "-n", "a", *begun)
    if begun:
        await torpor(data_dir, "instance", "wait", "a")
        if how == "stop":
            await torpor(data_dir, "instance", "stop", "a")
        else:
            (vm,) = host.running.values()
            vm.end(Exit("exit", 0))
        await torpor(data_dir, "instance", "wait", "a", "--state", "stopped")
    said = await asyncio.wait_for(torpor(data_dir, "instance", "logs", "-f", "a"), 60)
    assert said == ("life 1 of a\n" if begun else "")


async def test_what_goes_on_by_itself_is_followed(
    server: Service, data_dir: Path, host: FakeHost
) -> None:
    """Over standby, and over an end that is followed by a restart."""
    assert server
    words = ("instance", "create", "web", "-n", "a", "--start", "--restart", "on-failure")
    await torpor(data_dir, *words)
    await torpor(data_dir, "instance", "wait", "a")
    following = await asyncio.create_subprocess_exec(
        TORPOR, "--data", data_dir, "instance", "logs", "-f", "a", stdout=subprocess.PIPE
    )
    assert following.stdout is not None
    assert await asyncio.wait_for(following.stdout.readline(), 60) == b"life 1 of a\n"
    await torpor(data_dir, "instance", "suspend", "a")
    await asyncio.sleep(2)
    await torpor(data_dir, "instance", "start", "a", "--wait", "60")
    assert await asyncio.wait_for(following.stdout.readline(), 60) == b"life 2 of a\n"
    for _ in range(3):
        (vm,) = host.running.values()
        vm.end(Exit("exit", 1))
        assert (await asyncio.wait_for(following.stdout.readline(), 60)).startswith(b"life ")
    (vm,) = host.running.values()
    vm.end(Exit("exit", 0))
    assert await asyncio.wait_for(following.wait(), 60) == 0


async def test_images_are_called_as_people_know_them(server: Service, data_dir: Path) -> None:
    assert server
    images = ImageStore(data_dir)
    digest = images.resolve("web").digest
    for number, image in enumerate(("web", digest, f"web@{digest}", digest[7:19])):
        await torpor(data_dir, "instance", "create", image, "-n", f"i{number}")

    async def shown(*words: str) -> list[str]:
        lines = (await torpor(data_dir, *words)).splitlines()
        if words[1] == "get":
            return [line.split()[1] for line in lines if line.startswith("image:")]
        return [line.split()[3] for line in lines[1:]]

    known = ["web", "web:latest", "web:latest", digest[7:19]]
    assert await shown("instance", "list") == known
    assert await shown("instance", "get", "i1") == known[1:2]
    exactly = json.loads(await torpor(data_dir, "instance", "get", "i1", "-o", "json"))
    assert exactly[0]["image"] == digest
    await torpor(data_dir, "image", "tag", "web", "other:1")
    images.remove("web")
    assert await shown("instance", "get", "i1", "i2") == ["other:1", "other:1"]
    images.remove("other:1")
    assert await shown("instance", "get", "i1", "i2") == [digest[7:19]] * 2


async def test_checkpoints_branches_and_clones(
    server: Service, data_dir: Path, http: httpx.AsyncClient
) -> None:
    assert server
    await torpor(data_dir, "instance", "create", "web", "-n", "app", "--start", "--tag", "t")
    await torpor(data_dir, "instance", "wait", "app")
    assert await torpor(data_dir, "checkpoint", "create", "app", "cp") == "cp\n"
    unnamed = (await torpor(data_dir, "checkpoint", "create", "app", "--tag", "own")).strip()
    assert unnamed.startswith("app-")
    listed = json.loads(await torpor(data_dir, "checkpoint", "list", "-o", "json"))
    assert [(one["name"], one["tags"]) for one in listed] == [("cp", ["t"]), (unnamed, ["own"])]
    assert (await torpor(data_dir, "checkpoint", "ls")).splitlines()[1].split()[2] == "web"
    taken = await torpor(data_dir, "checkpoint", "create", "app", "cp", status=125)
    assert taken == "torpor: A checkpoint with the name 'cp' already exists\n"

    prefix = listed[0]["uuid"][:8]
    ports = ("-p", "80:8080", "-p", "443:8080")
    words = ("checkpoint", "restore", prefix, "old", *ports, "-o", "json")
    (old,) = json.loads(await torpor(data_dir, *words))
    assert (old["name"], old["state"]) == ("old", "standby")
    assert old["service_group"]["domains"] == [{"fqdn": "old.localhost"}]
    await torpor(data_dir, "branch", "app", "twig", "--start", "--tag", "u")
    await torpor(data_dir, "instance", "start", "old", "--wait", "60")
    await torpor(data_dir, "instance", "wait", "twig")
    for name in ("old", "twig"):
        assert await torpor(data_dir, "instance", "logs", name) == f"life 2 of {name}\n"
    assert "cp" in (await torpor(data_dir, "instance", "history", "old"))
    nobody = await torpor(data_dir, "branch", "nobody", status=125)
    assert nobody == "torpor: No instance is 'nobody': there are 'app', 'old', 'twig'\n"

    removed = await torpor(data_dir, "checkpoint", "delete", "-y", "cp", unnamed)
    assert removed == f"cp removed\n{unnamed} removed\n"
    assert "--yes" in await torpor(data_dir, "checkpoint", "rm", "cp", status=125)

    await torpor(data_dir, "template", "create", "seed", "web")
    again = await torpor(data_dir, "template", "create", "seed", "web", "-M", "64", status=125)
    assert "a template with the name 'seed' already exists" in again
    assert "`torpor template rm seed`" in again
    await torpor(data_dir, "instance", "create", "--template", "seed", "-n", "clone", *ports)
    answer = (await http.get("/v1/instances?name=clone")).json()
    (clone,) = answer["data"]["instances"]
    assert [one["fqdn"] for one in clone["service_group"]["domains"]] == ["clone.localhost"]
    await torpor(data_dir, "instance", "start", "clone", "--wait", "60")
    assert "life 1" not in await torpor(data_dir, "instance", "logs", "clone")


async def test_several_at_once_and_what_a_shell_completes(server: Service, data_dir: Path) -> None:
    assert server
    made = json.loads(
        await torpor(data_dir, "instance", "create", "web", "-n", "one", "--start", "-o", "json")
    )
    prefix = made[0]["uuid"][:12]
    await torpor(data_dir, "instance", "create", "web", "-n", "other", "-M", "64", "--start")
    await torpor(data_dir, "instance", "wait", prefix, "other")
    for command, format_ in (("get", "yaml"), ("history", "table"), ("top", "json")):
        shown = await torpor(data_dir, "instance", command, prefix, "other", "-o", format_)
        assert "one" in shown
        assert "other" in shown
    logs = await torpor(data_dir, "instance", "logs", prefix, "other")
    assert sorted(logs.splitlines()) == [
        f"{prefix}: life 1 of one", "other: life 1 of other"
    ]  # fmt: skip
    assert await torpor(data_dir, "instance", "logs", "other") == "life 1 of other\n"
    moved = await torpor(data_dir, "instance", "suspend", prefix, "other")
    assert moved == "one running -> standby\nother running -> standby\n"

    async def completed(*words: str) -> list[str]:
        environment = {
            "_TORPOR_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["torpor", "--data", str(data_dir), *words]),
            "COMP_CWORD": str(len(words) + 2),
        }
        return [
            line.partition(",")[2] for line in (await torpor(data_dir, env=environment)).split()
        ]

    assert "suspend" in await completed("instance", "sus")
    assert await completed("instance", "stop", "o") == ["one", "other"]
    assert await completed("instance", "stop", "one", "ot") == ["other"]
    assert await completed("instance", "create", "we") == ["web:latest"]
    await torpor(data_dir, "service", "create", "api", "-p", "443:8080")
    assert await completed("service", "rm", "a") == ["api"]


async def test_what_is_our_own_of_a_service(data_dir: Path, http: httpx.AsyncClient) -> None:
    ports = ("-p", "8443:443/passthrough", "-p", "80:8080", "-p", "6379/tcp", "-p", "5432/tls")
    flags = ("--wake-on-timer", "--retry-idempotent")
    urls = await torpor(data_dir, "deploy", "web", "-n", "own", *flags, *ports)
    assert [url.partition(":")[0] for url in urls.split()] == ["https", "http", "tcp", "https"]
    for _ in range(2):
        answer = (await http.get("/v1/instances?name=own&details=true")).json()
        (instance,) = answer["data"]["instances"]
        assert instance["scale_to_zero"]["wake_on_timer"] is True
        uuid = instance["service_group"]["uuid"]
        answer = (await http.get(f"/v1/services/{uuid}")).json()
        (group,) = answer["data"]["service_groups"]
        found = {one["port"]: one for one in group["services"]}
        handlers = {port: set(service["handlers"]) for port, service in found.items()}
        assert handlers == {8443: set(), 80: {"http"}, 6379: set(), 5432: {"tls"}}
        passed = [port for port, service in found.items() if service.get("tls_passthrough")]
        assert passed == [8443]
        assert all(service["retry_idempotent"] for service in found.values())
        # A new version keeps its ports.
        assert urls == await torpor(data_dir, "deploy", "web", "-n", "own", *flags, *ports)
    for word in ("6379/", "6379:x/tcp", "/tcp"):
        refused = await torpor(data_dir, "deploy", "web", "-p", word, status=125)
        assert "option '-p' needs PORT[:DESTINATION][/HANDLERS]" in refused


async def test_when_an_instance_sleeps_and_begins_anew(server: Service, data_dir: Path) -> None:
    assert server
    for words in (("instance", "create"), ("deploy",)):
        flags = ("--scale-to-zero", "idle", "--stateful", "true", "--cooldown", "1.5s")
        more = ("--restart", "on-failure", "-p", "80:8080", "-M", "1G")
        await torpor(data_dir, *words, "web", "-n", words[-1], *flags, *more)
        (made,) = json.loads(await torpor(data_dir, "instance", "get", words[-1], "-o", "json"))
        policy = made["scale_to_zero"]
        assert (policy["policy"], policy["stateful"], policy["cooldown_time_ms"]) == (
            "idle", True, 1500
        )  # fmt: skip
        assert (made["restart_policy"], made["memory_mb"]) == ("on-failure", 1024)
    await torpor(data_dir, "instance", "create", "web", "-n", "plain", "--stateful", "true")
    (made,) = json.loads(await torpor(data_dir, "instance", "get", "plain", "-o", "json"))
    assert (made["scale_to_zero"]["policy"], made["scale_to_zero"]["stateful"]) == ("off", True)
    alone = ("instance", "create", "web", "--scale-to-zero", "on")
    refused = await torpor(data_dir, *alone, status=125)
    assert "option '--scale-to-zero' is 'on': needs a service" in refused


async def test_sizes_and_times(server: Service, data_dir: Path, host: FakeHost) -> None:
    assert server
    for number, (written, mb) in enumerate((("64", 64), ("64M", 64), ("0.5g", 512))):
        await torpor(data_dir, "instance", "create", "web", "-n", f"i{number}", "-M", written)
        (made,) = json.loads(await torpor(data_dir, "instance", "get", f"i{number}", "-o", "json"))
        assert made["memory_mb"] == mb
    for written in ("1", "1s", "500ms", "0.01m"):
        waiting = ("instance", "wait", "i0", "--timeout", written)
        assert "timed out" in await torpor(data_dir, *waiting, status=1)
    await torpor(data_dir, "instance", "start", "i0", "--wait", "1m")
    assert "i0 running" in await torpor(data_dir, "instance", "wait", "i0", "--timeout", "-1")
    (used,) = (await torpor(data_dir, "instance", "top")).splitlines()[1:]
    assert used.split()[:4] == ["i0", "running", "4KiB", "5ms"]
    exactly = json.loads(await torpor(data_dir, "instance", "top", "-o", "json"))
    assert exactly[0]["rss_bytes"] == 4096
    (vm,) = host.running.values()
    vm.listener.output(b"one\rtwo\nthree\nfour")
    for lines, said in (
        ("1", "four"), ("2", "three\nfour"), ("3", "one\rtwo\nthree\nfour"), ("0", ""),
        ("9", "life 1 of i0\none\rtwo\nthree\nfour"),
    ):  # fmt: skip
        shown = await call(data_dir, "instance", "logs", "i0", "--tail", lines)
        assert shown.stdout == said.replace("\r", "\n")


async def test_all_of_an_instance_for_a_person(
    server: Service, data_dir: Path, host: FakeHost
) -> None:
    assert server
    words = ("instance", "create", "web", "-n", "a", "-p", "80:8080", "-e", "K=two words")
    more = ("--scale-to-zero", "on", "--stateful", "true", "--restart", "on-failure", "--tag", "t")
    await torpor(data_dir, *words, *more, "--start", "--", "serve", "a b")
    await torpor(data_dir, "instance", "create", "web", "-n", "b")

    async def shown(name: str) -> dict[str, str]:
        lines = (await torpor(data_dir, "instance", "get", name)).splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    await torpor(data_dir, "instance", "wait", "a")
    found = await shown("a")
    assert list(found) == [
        "name", "uuid", "state", "image", "memory", "arguments", "environment", "created",
        "started", "up", "starts", "restart", "scale to zero", "service", "hosts", "tags",
    ]  # fmt: skip
    for name, value in {
        "name": "a", "state": "running", "image": "web", "memory": "128 MiB",
        "arguments": "serve 'a b'", "environment": "K='two words'", "starts": "1",
        "restart": "on-failure", "scale to zero": "on, stateful, after 1s", "hosts": "a.localhost",
        "tags": "t",
    }.items():  # fmt: skip
        assert found[name] == value
    await torpor(data_dir, "instance", "start", "b", "--wait", "60")
    next(vm for vm in host.running.values() if vm.name == "b").end(Exit("out-of-memory", 9))
    await torpor(data_dir, "instance", "wait", "b", "--state", "stopped")
    reason = (await shown("b"))["stop reason"]
    assert reason == "it was out of memory (reason 1, stop code 0x000C7F04, exit status 137)"
    both = await torpor(data_dir, "instance", "get", "b", "a")
    assert [line for line in both.splitlines() if line.startswith("name:") or not line] == [
        "name:          b", "", "name:          a"
    ]  # fmt: skip
    assert "scale to zero: off" in both


async def test_services_tokens_quotas_and_deploy(server: Service, data_dir: Path) -> None:
    assert server
    await torpor(data_dir, "service", "create", "api", "-p", "443:8080", "-d", "api.test.")
    assert "api.test" in await torpor(data_dir, "service", "list")
    url = await torpor(data_dir, "deploy", "web", "-p", "443:8080", "-n", "app")
    assert url.startswith("https://app.localhost")
    # A new version takes the place of the old one, under the same name and host.
    (old,) = json.loads(await torpor(data_dir, "instance", "get", "app", "-o", "json"))
    assert (
        await torpor(data_dir, "deploy", "web", "-p", "443:8081", "-n", "app", "-e", "V=2") == url
    )
    (new,) = json.loads(await torpor(data_dir, "instance", "get", "app", "-o", "json"))
    assert (new["name"], new["env"]["V"], new["state"]) == ("app", "2", "running")
    assert new["uuid"] != old["uuid"]
    assert new["service_group"]["uuid"] == old["service_group"]["uuid"]
    assert len(json.loads(await torpor(data_dir, "instance", "list", "-o", "json"))) == 1
    for source, what in (("./nowhere", "no such directory"), (str(data_dir), "has no Dockerfile")):
        assert what in await torpor(data_dir, "deploy", source, "-n", "b", status=125)
    token = (await torpor(data_dir, "token", "create", "ci", "--scope", "read")).strip()
    environment = {"UKC_METRO": server.endpoint, "UKC_TOKEN": token}
    assert "app" in await torpor(data_dir, "instance", "list", env=environment)
    refused = await torpor(data_dir, "instance", "stop", "app", status=125, env=environment)
    assert "lacks the scope 'write'" in refused
    await torpor(data_dir, "quota", "set", "default", "instances=1")
    over = await torpor(data_dir, "instance", "create", "web", status=1)
    assert "Quota of 1 instances exceeded" in over
    revoked = await torpor(data_dir, "token", "rm", "ci", "nobody's", status=1)
    assert revoked == "torpor: nobody's: No token with name 'nobody's'\n"
    assert "ci" not in await torpor(data_dir, "token", "list")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("instance", "list", "--state", "asleep"), "'stopped', 'starting', 'running'"),
        (("instance", "wait", "a", "--state", "asleep"), "'stopped', 'starting', 'running'"),
        (("instance", "create", "web", "--replicas", "-1"), "x>=0"),
        (("token", "create", "ci", "--expires", "0"), "x>=1"),
    ],
)
async def test_what_cannot_be_is_refused_with_what_can(
    data_dir: Path, words: tuple[str, ...], said: str
) -> None:
    assert said in await torpor(data_dir, *words, status=2)


@pytest.mark.parametrize("words", [("-p", "\u00b2"), ("-p", "80:8080", "--cooldown", "\u00b2s")])
async def test_digits_that_are_no_numbers(
    server: Service, data_dir: Path, words: tuple[str, ...]
) -> None:
    assert server
    refused = await torpor(data_dir, "deploy", "web", *words, status=125)
    assert refused.startswith("torpor: option '")


async def test_another_program_that_listens_there(data_dir: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        environment = {"UKC_METRO": f"http://127.0.0.1:{port}", "UKC_TOKEN": "x"}
        refused = await torpor(data_dir, "instance", "list", status=125, env=environment)
    assert "another program listens there" in refused


async def test_no_token_goes_to_a_proxy_of_the_environment(server: Service, data_dir: Path) -> None:
    assert server
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.setblocking(False)
        proxy = f"http://127.0.0.1:{trap.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")
        await torpor(data_dir, "instance", "list", env=dict.fromkeys(names, proxy))
        with pytest.raises(BlockingIOError):
            trap.accept()


async def test_up_and_down(tmp_path: Path) -> None:
    """In the background: a killed torpord is started again, and `down` ends both."""
    addresses = ["--listen", "127.0.0.1:0", "--proxy", "127.0.0.1:0"]
    addresses += ["--proxy-tls", "127.0.0.1:0"]
    said = (await torpor(tmp_path, "up", *addresses)).splitlines()
    assert [line.rpartition(":")[0] for line in said] == [
        "api http://127.0.0.1", "proxy http://127.0.0.1", "proxy-tls https://127.0.0.1"
    ]  # fmt: skip
    headers = {"Authorization": f"Bearer {(tmp_path / 'token').read_text().strip()}"}
    async with asyncio.timeout(60), httpx.AsyncClient(headers=headers) as client:
        while True:
            answer = await client.get(f"{said[0].split()[1]}/torpor/v1/status")
            status = answer.json()["data"]
            if status["proxy"] == "connected":
                break
            await asyncio.sleep(0.05)
    ports = [int(line.rpartition(":")[2]) for line in said[1:]]
    assert status["public_ports"] == dict(zip(("80", "443"), ports, strict=True))
    pid = int((tmp_path / "run" / "torpord.lock").read_text())
    again = await torpor(tmp_path, "up", *addresses, status=125)
    supervisor = int((tmp_path / "run" / "supervisor.pid").read_text())
    assert f"a server runs already on {tmp_path} (process {supervisor})" in again
    os.kill(pid, 9)
    async with asyncio.timeout(120):
        while (tmp_path / "run" / "torpord.lock").read_text() in ("", f"{pid}\n"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await torpor(tmp_path, "down")
    lines = (tmp_path / "logs" / "server.log").read_text().splitlines()
    told = [line for line in lines if line.partition(" ")[0] not in ("api", "proxy", "proxy-tls")]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ torpor", line) for line in told), told
    assert sum("torpord is started: process" in line for line in told) == 2
    assert sum("torpord ended with status -9" in line for line in told) == 1
    assert "no server runs" in await torpor(tmp_path, "down", status=125)
    assert await torpor(tmp_path, "store", "check") == ""

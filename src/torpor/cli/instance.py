"""`torpor instance`."""

import asyncio
import base64
import sys
from collections.abc import Callable
from itertools import islice
from typing import Any

import click

from torpor.cli.client import Server, report, run
from torpor.cli.complete import image_names, instance_names, references_to
from torpor.cli.output import confirm, output_option, say, show
from torpor.errors import UsageError

COLUMNS = (
    ("NAME", "name"),
    ("UUID", "uuid"),
    ("STATE", "state"),
    ("IMAGE", "image"),
    ("MEMORY", "memory_mb"),
    ("CREATED", "created_at"),
    ("DOMAINS", "service_group.domains.fqdn"),
)
STATES = click.Choice(["stopped", "starting", "running", "draining", "stopping", "standby"])
PAGE = 100
POLL_S = 0.5

references = references_to(instance_names)


@click.group()
def instance() -> None:
    """Make, list, start, stop and remove instances. UUIDs may be cut to what is unique."""


@instance.command("list")
@click.option("--all", "every", is_flag=True, help=f"All, not just the first {PAGE}.")
@click.option("--state", type=STATES, help="Only those in this state.")
@click.option("--tag", "tags", multiple=True, help="Only those with this tag, and each other one.")
@output_option
@click.pass_obj
def list_command(
    data: str | None, every: bool, state: str | None, tags: tuple[str, ...], format_: str
) -> None:
    """List instances, oldest first."""

    async def work(server: Server) -> list[Any]:
        parameters: dict[str, Any] = {"count": 0 if every else PAGE + 1}
        if tags:
            parameters["tags"] = ",".join(tags)
        if state:
            parameters["state"] = state
        # The SDK has no parameter for a state.
        answer = await server.own("GET", "/v1/instances", params=parameters)
        return list(answer["instances"])

    found = run(data, work)
    show(found if every else list(islice(found, PAGE)), format_, COLUMNS)
    if not every and len(found) > PAGE:
        say(f"only the first {PAGE}: --all lists the others too")


@instance.command()
@references
@output_option
@click.pass_obj
def get(data: str | None, references: tuple[str, ...], format_: str) -> None:
    """Show instances."""

    async def work(server: Server) -> list[Any]:
        uuids = [each["uuid"] for each in await server.resolve("instance", references)]
        answer = await server.sdk.api.platform.instances.get_instances(uuid=uuids)
        return list(answer.data.instances)

    show(run(data, work), format_, COLUMNS)


@instance.command()
@click.argument("image", shell_complete=image_names)
@click.argument("args", nargs=-1)
@click.option("-n", "--name")
@click.option("-M", "--memory", "memory_mb", type=int, help="MiB (default 128).")
@click.option("-e", "--env", "env", multiple=True, metavar="K=V")
@click.option("--tag", "tags", multiple=True)
@click.option("--restart", type=click.Choice(["never", "always", "on-failure"]))
@click.option("--replicas", type=click.IntRange(0), help="That many more of the same.")
@click.option("--start", is_flag=True, help="Start it, too.")
@output_option
@click.pass_obj
def create(
    data: str | None,
    image: str,
    args: tuple[str, ...],
    name: str | None,
    memory_mb: int | None,
    env: tuple[str, ...],
    tags: tuple[str, ...],
    restart: str | None,
    replicas: int | None,
    start: bool,
    format_: str,
) -> int:
    """Make an instance of IMAGE; ARGS in place of the image's command.

    ARGS with options of their own go behind a --: `torpor instance create IMAGE -- sh -c 'exit 1'`.
    """
    spec = {
        "image": image,
        "args": list(args) or None,
        "name": name,
        "memory_mb": memory_mb,
        "env": environment(env) or None,
        "tags": list(tags) or None,
        "restart_policy": restart,
        "replicas": replicas,
        "autostart": start or None,
    }
    body = {key: value for key, value in spec.items() if value is not None}

    async def work(server: Server) -> list[Any]:
        answer = await server.sdk.api.platform.instances.create_instance(body=body)
        return list(answer.data.instances)

    made = run(data, work)
    good = [each for each in made if each.status != "error"]
    if good:
        show(good, format_, COLUMNS)
    return report([each for each in made if each.status == "error"], str)


def environment(words: tuple[str, ...]) -> dict[str, str]:
    """`K=V` words as a mapping. Raises UsageError."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UsageError(f"option '--env' needs K=V, not '{word}'")
        found[name] = value
    return found


def _bulk(
    data: str | None,
    references: tuple[str, ...],
    method: str,
    words: Callable[[Any], str],
    **more: Any,
) -> int:
    async def work(server: Server) -> list[Any]:
        named = await server.resolve("instance", references)
        call = getattr(server.sdk.api.platform.instances, method)
        answer = await call(body=[{**each, **more} for each in named])
        return list(answer.data.instances)

    return report(run(data, work), words)


def _moved(item: Any) -> str:
    return f"{item.name} {item.previous_state} -> {item.state}"


@instance.command()
@references
@click.option("--wait", "wait_s", type=int, default=0, metavar="SECONDS", help="Until it runs.")
@click.pass_obj
def start(data: str | None, references: tuple[str, ...], wait_s: int) -> int:
    """Start instances, or wake them from standby."""
    return _bulk(data, references, "start_instances", _moved, timeout_s=wait_s)


@instance.command()
@references
@click.option("--force", is_flag=True, help="At once, without asking the program.")
@click.pass_obj
def stop(data: str | None, references: tuple[str, ...], force: bool) -> int:
    """Stop instances. What they had in memory is lost."""
    return _bulk(data, references, "stop_instances", _moved, force=force)


@instance.command()
@references
@click.pass_obj
def suspend(data: str | None, references: tuple[str, ...]) -> int:
    """Put instances into standby: their memory goes to the disk."""
    return _bulk(data, references, "suspend_instances", _moved)


@instance.command()
@references
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def rm(data: str | None, references: tuple[str, ...], yes: bool) -> int:
    """Remove instances with all that they hold."""
    if not yes:
        confirm(f"Remove {', '.join(references)}?")
    return _bulk(data, references, "delete_instances", lambda item: f"{item.name} removed")


@instance.command()
@references
@click.option("--state", type=STATES, default="running", show_default=True)
@click.option("--timeout", "timeout_s", type=int, default=-1, metavar="SECONDS")
@click.pass_obj
def wait(data: str | None, references: tuple[str, ...], state: str, timeout_s: int) -> int:
    """Wait until instances are in a state."""
    return _bulk(
        data,
        references,
        "wait_instances",
        lambda item: f"{item.name} {item.state}",
        state=state,
        timeout_s=timeout_s,
    )


@instance.command()
@references
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option(
    "--tail", "tail_bytes", type=click.IntRange(1), metavar="BYTES", help="The last BYTES only."
)
@click.pass_obj
def logs(
    data: str | None, references: tuple[str, ...], follow: bool, tail_bytes: int | None
) -> int:
    """Print what instances wrote to their consoles; of several, each line behind a name."""

    async def one(server: Server, reference: str, prefix: bytes) -> bool:
        (named,) = await server.resolve("instance", [reference])
        item: dict[str, Any] = dict(named)
        if tail_bytes is not None:
            item["offset"] = -tail_bytes
        rest = b""
        while True:
            answer = await server.sdk.api.platform.instances.get_instance_logs(body=[item])
            (log,) = answer.data.instances
            if log.status == "error":
                say(f"torpor: {reference}: {log.message}")
                return False
            is_over = log.range.end == log.available.end and not follow
            written = rest + base64.b64decode(log.output or "")
            rest = b"" if is_over or not prefix else written[written.rfind(b"\n") + 1 :]
            shown = written.removesuffix(rest) if rest else written
            if prefix:
                shown = b"".join(prefix + line + b"\n" for line in shown.splitlines())
            sys.stdout.buffer.write(shown)
            sys.stdout.buffer.flush()
            if is_over:
                return True
            item = {**named, "offset": log.range.end}
            if log.range.end == log.available.end:
                await asyncio.sleep(POLL_S)

    async def work(server: Server) -> list[bool]:
        prefixes = [f"{each}: ".encode() if len(references) > 1 else b"" for each in references]
        return await asyncio.gather(
            *(one(server, *each) for each in zip(references, prefixes, strict=True))
        )

    return 0 if all(run(data, work)) else 1


@instance.command()
@click.argument("references", nargs=-1, metavar="[NAME|UUID...]", shell_complete=instance_names)
@output_option
@click.pass_obj
def top(data: str | None, references: tuple[str, ...], format_: str) -> None:
    """Show what instances use; all that run, if none is named."""

    async def work(server: Server) -> list[Any]:
        uuids = None
        if references:
            uuids = [each["uuid"] for each in await server.resolve("instance", references)]
        answer = await server.sdk.api.platform.instances.get_instance_metrics(uuid=uuids)
        return list(answer.data.instances)

    columns = (
        ("NAME", "name"),
        ("STATE", "state"),
        ("RSS BYTES", "rss_bytes"),
        ("CPU MS", "cpu_time_ms"),
        ("UP MS", "uptime_ms"),
    )
    show(run(data, work), format_, columns)


@instance.command()
@references
@output_option
@click.pass_obj
def history(data: str | None, references: tuple[str, ...], format_: str) -> None:
    """Show the checkpoints that instances descend from, newest first."""

    async def work(server: Server) -> list[Any]:
        uuids = [each["uuid"] for each in await server.resolve("instance", references)]
        answer = await server.sdk.api.platform.instances.get_instance_history(uuid=uuids)
        return list(answer.data.instances)

    show(run(data, work), format_, (("NAME", "name"), ("CHECKPOINTS", "history.name")))

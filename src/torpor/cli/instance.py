"""`torpor instance`."""

import asyncio
import base64
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import click

from torpor.cli.client import Server, report, run
from torpor.cli.complete import image_names, instance_names, references_to, template_names
from torpor.cli.group import ObjectGroup, removal
from torpor.cli.output import TABLE, as_plain, output_option, say, show
from torpor.cli.service import PORT, group_of, parse_port
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
DIGITS = 12
"""Of a digest that stands for an image, as in `torpor image list`."""
POLL_S = 0.5

references = references_to(instance_names)


@click.group(cls=ObjectGroup)
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
        return await with_image_names(server, answer["instances"], format_)

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
        return await with_image_names(server, answer.data.instances, format_)

    show(run(data, work), format_, COLUMNS)


async def with_image_names(server: Server, found: Iterable[Any], format_: str) -> list[Any]:
    """Instances and the like; in a table with their images called as people know them.

    An image that was named by its digest has its tag there, or the digest's first digits where no
    tag stands for it any more.
    """
    items = [as_plain(item) for item in found]
    by_digest = [item for item in items if "sha256:" in (item.get("image") or "")]
    if format_ == TABLE and by_digest:
        images = (await server.own("GET", "/v1/image-store"))["images"]
        tags = {image["url"].rpartition("@")[2]: image["tags"] for image in images}
        for item in by_digest:
            item["image"] = _familiar(item["image"], tags)
    return items


def _familiar(image: str, tags: Mapping[str, Sequence[str]]) -> str:
    """What an image called `[NAME@]sha256:...` is known as; `tags` are those of each digest."""
    name, _, digest = image.rpartition("@")
    known = tags.get(digest, ())
    for tag in (name, f"{name}:latest", *known):
        if tag in known:
            return tag
    return digest.removeprefix("sha256:")[:DIGITS]


class Source(NamedTuple):
    """What an instance is made of besides an image: the API's field, and the kind of object."""

    field: str
    kind: str


TEMPLATE = Source("template", "template")
CHECKPOINT = Source("checkpoint", "checkpoint")
INSTANCE = Source("branch_from", "instance")


def new_instance_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that makes an instance."""
    for option in (
        output_option,
        click.option("--start", is_flag=True, help="Start it, too."),
        click.option("--tag", "tags", multiple=True),
        click.option(
            "-p", "--port", "services", multiple=True, metavar=PORT,
            help="Make it a service at this port, with the instance's name as host.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def make(
    data: str | None,
    format_: str,
    source: Source | None,
    reference: str,
    *,
    name: str | None,
    services: tuple[str, ...],
    tags: tuple[str, ...],
    start: bool,
    **more: Any,
) -> int:
    """Makes an instance and shows it; the exit status. `more` are fields of the API.

    Of a source of this name or uuid, or of the image called `reference`.
    """
    wanted = [parse_port(service) for service in services]
    spec = {
        "name": name,
        "service_group": group_of(name, wanted) if wanted else None,
        "tags": list(tags) or None,
        "autostart": start or None,
        **more,
    }
    body = {field: value for field, value in spec.items() if value is not None}

    async def work(server: Server) -> tuple[list[Any], list[Any]]:
        if source is None:
            body["image"] = reference
        else:
            (body[source.field],) = await server.resolve(source.kind, [reference])
        answer = await server.sdk.api.platform.instances.create_instance(body=body)
        good = [each for each in answer.data.instances if each.status != "error"]
        bad = [each for each in answer.data.instances if each.status == "error"]
        return await with_image_names(server, good, format_), bad

    good, bad = run(data, work)
    if good:
        show(good, format_, COLUMNS)
    return report(bad, str)


@instance.command()
@click.argument("image", required=False, shell_complete=image_names)
@click.argument("args", nargs=-1)
@click.option(
    "--template", shell_complete=template_names,
    help="Clone this template in place of starting an IMAGE.",
)  # fmt: skip
@click.option("-n", "--name")
@click.option("-M", "--memory", "memory_mb", type=int, help="MiB (default 128).")
@click.option("-e", "--env", "env", multiple=True, metavar="K=V")
@click.option("--restart", "restart_policy", type=click.Choice(["never", "always", "on-failure"]))
@click.option("--replicas", type=click.IntRange(0), help="That many more of the same.")
@new_instance_options
@click.pass_obj
def create(
    data: str | None,
    /,
    image: str | None,
    args: tuple[str, ...],
    template: str | None,
    memory_mb: int | None,
    env: tuple[str, ...],
    restart_policy: str | None,
    replicas: int | None,
    format_: str,
    **options: Any,
) -> int:
    """Make an instance of IMAGE; ARGS in place of the image's command.

    ARGS with options of their own go behind a --: `torpor instance create IMAGE -- sh -c 'exit 1'`.
    """
    if image is not None and template is not None:
        raise UsageError(f"IMAGE '{image}' and --template '{template}' are given: give one of them")
    if template is None and image is None:
        raise UsageError("give an IMAGE, or a template with --template NAME")
    return make(
        data,
        format_,
        None if template is None else TEMPLATE,
        image or template or "",
        args=list(args) or None,
        memory_mb=memory_mb,
        env=environment(env) or None,
        restart_policy=restart_policy,
        replicas=replicas,
        **options,
    )


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


instance.add_command(
    removal(
        "instance",
        instance_names,
        lambda platform: platform.instances.delete_instances,
        "Remove instances with all that they hold.",
    )
)


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
    """Print what instances wrote to their consoles; of several, each line behind a name.

    An instance is followed until it has stopped, unless it is about to be started again.
    """

    async def one(server: Server, reference: str, prefix: bytes) -> bool:
        (named,) = await server.resolve("instance", [reference])
        item: dict[str, Any] = dict(named)
        if tail_bytes is not None:
            item["offset"] = -tail_bytes
        rest, last_start = b"", None
        while True:
            answer = await server.sdk.api.platform.instances.get_instance_logs(body=[item])
            (log,) = answer.data.instances
            if log.status == "error":
                say(f"torpor: {reference}: {log.message}")
                return False
            is_over = is_end = log.range.end == log.available.end
            if is_end and follow:
                # Twice the same: a restart is neither to come nor under way.
                before, last_start = last_start, await _last_start(server, log)
                is_over = last_start is not None and last_start == before
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
            if is_end:
                await asyncio.sleep(POLL_S)

    async def work(server: Server) -> list[bool]:
        prefixes = [f"{each}: ".encode() if len(references) > 1 else b"" for each in references]
        return await asyncio.gather(
            *(one(server, *each) for each in zip(references, prefixes, strict=True))
        )

    return 0 if all(run(data, work)) else 1


async def _last_start(server: Server, log: Any) -> int | None:
    """The number of an instance's last start, if it has stopped and no restart is to come."""
    if log.state != "stopped":
        return None
    answer = await server.sdk.api.platform.instances.get_instances(uuid=[log.uuid])
    (found,) = answer.data.instances
    return None if found.restart is not None or found.state != "stopped" else found.start_count


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

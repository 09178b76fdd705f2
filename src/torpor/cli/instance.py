"""`torpor instance`."""

import asyncio
import base64
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import click

from torpor.cli.client import Server, report, run
from torpor.cli.complete import image_names, instance_names, references_to, template_names
from torpor.cli.describe import described
from torpor.cli.group import ObjectGroup, removal
from torpor.cli.output import TABLE, as_plain, output_option, say, show
from torpor.cli.quantities import Memory, Time, lasting, size
from torpor.cli.service import PORT, group_of, parse_port
from torpor.controller.rules import random_name
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
    """Show all there is to know of instances."""

    async def work(server: Server) -> list[Any]:
        uuids = [each["uuid"] for each in await server.resolve("instance", references)]
        answer = await server.sdk.api.platform.instances.get_instances(uuid=uuids)
        return await with_image_names(server, answer.data.instances, format_)

    found = run(data, work)
    if format_ == TABLE:
        click.echo("\n\n".join("\n".join(described(item)) for item in found))
    else:
        show(found, format_, ())


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


def life_options(**defaults: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of when an instance sleeps and when it begins anew."""
    options = (
        click.option(
            "--scale-to-zero", type=click.Choice(["on", "off", "idle"]),
            default=defaults.get("scale_to_zero"), show_default=True,
            help="Sleep without requests; with idle, also beside connections that are silent.",
        ),
        click.option(
            "--stateful", type=bool, default=defaults.get("stateful"), show_default=True,
            help="Keep memory while it sleeps.",
        ),
        click.option(
            "--cooldown", "cooldown_time_ms", type=Time(), default=defaults.get("cooldown"),
            show_default=True, help="How long nobody asks before it sleeps.",
        ),
        click.option(
            "--wake-on-timer", is_flag=True, help="Its program's next timer wakes it as well."
        ),
        click.option(
            "--restart", "restart_policy", type=click.Choice(["never", "always", "on-failure"]),
            help="When its program has ended.",
        ),
    )  # fmt: skip

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def policy_of(
    scale_to_zero: str | None,
    stateful: bool | None,
    cooldown_time_ms: int | None,
    wake_on_timer: bool,
) -> dict[str, Any] | None:
    """What these options say, if any was given."""
    wanted = {
        "policy": scale_to_zero,
        "stateful": stateful,
        "cooldown_time_ms": cooldown_time_ms,
        "wake_on_timer": wake_on_timer or None,
    }
    return {field: value for field, value in wanted.items() if value is not None} or None


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
    if wanted and name is None:
        name = random_name()  # the host's, too
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
@click.option("-M", "--memory", "memory_mb", type=Memory(), help="As 256M or 1G (default 128M).")
@click.option("-e", "--env", "env", multiple=True, metavar="K=V")
@life_options()
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
    scale_to_zero: str | None,
    stateful: bool | None,
    cooldown_time_ms: int | None,
    wake_on_timer: bool,
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
    if scale_to_zero in ("on", "idle") and not options["services"]:
        raise UsageError(
            f"option '--scale-to-zero' is '{scale_to_zero}': needs a service, whose requests wake "
            f"it: give -p {PORT}"
        )
    return make(
        data,
        format_,
        None if template is None else TEMPLATE,
        image or template or "",
        args=list(args) or None,
        memory_mb=memory_mb,
        env=environment(env) or None,
        scale_to_zero=policy_of(scale_to_zero, stateful, cooldown_time_ms, wake_on_timer),
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
    undone: str = "",
    **more: Any,
) -> int:
    async def work(server: Server) -> list[Any]:
        named = await server.resolve("instance", references, undone=undone)
        call = getattr(server.sdk.api.platform.instances, method)
        answer = await call(body=[{**each, **more} for each in named])
        return list(answer.data.instances)

    return report(run(data, work), words)


def _moved(item: Any) -> str:
    return f"{item.name} {item.previous_state} -> {item.state}"


@instance.command()
@references
@click.option(
    "--wait", "wait_ms", type=Time("s", may_be_forever=True), default="0s",
    help="Until it runs, so long at most: as 60 or 60s, 1m; -1 is for ever.",
)  # fmt: skip
@click.pass_obj
def start(data: str | None, references: tuple[str, ...], wait_ms: int) -> int:
    """Start instances, or wake them from standby."""
    return _bulk(
        data, references, "start_instances", _moved, "started", timeout_s=math.ceil(wait_ms / 1000)
    )


@instance.command()
@references
@click.option("--force", is_flag=True, help="At once, without asking the program.")
@click.pass_obj
def stop(data: str | None, references: tuple[str, ...], force: bool) -> int:
    """Stop instances. What they had in memory is lost."""
    return _bulk(data, references, "stop_instances", _moved, "stopped", force=force)


@instance.command()
@references
@click.pass_obj
def suspend(data: str | None, references: tuple[str, ...]) -> int:
    """Put instances into standby: their memory goes to the disk."""
    return _bulk(data, references, "suspend_instances", _moved, "suspended")


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
@click.option(
    "--timeout", "timeout_ms", type=Time("s", may_be_forever=True), default="-1",
    help="As 2 or 2s, 500ms, 1m; -1, the default, is for ever.",
)  # fmt: skip
@click.pass_obj
def wait(data: str | None, references: tuple[str, ...], state: str, timeout_ms: int) -> int:
    """Wait until instances are in a state."""
    return _bulk(
        data,
        references,
        "wait_instances",
        lambda item: f"{item.name} {item.state}",
        state=state,
        timeout_ms=timeout_ms,
    )


@instance.command()
@references
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("--tail", type=click.IntRange(0), metavar="LINES", help="The last LINES only.")
@click.pass_obj
def logs(data: str | None, references: tuple[str, ...], follow: bool, tail: int | None) -> int:
    """Print what instances wrote to their consoles; of several, each line behind a name.

    An instance is followed until it has stopped, unless it is about to be started again.
    """

    async def one(server: Server, reference: str, prefix: bytes) -> bool:
        (named,) = await server.resolve("instance", [reference])
        item: dict[str, Any] = dict(named)
        rest, last_start, last_lines = b"", None, tail
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
            if last_lines is not None:  # the first answer has all that is kept of a log
                written, last_lines = _tail(written, last_lines), None
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


def _tail(text: bytes, lines: int) -> bytes:
    """The last lines of a text; what is behind its last newline is one, too."""
    all_ = text.split(b"\n")
    return b"\n".join(all_[max(len(all_) - lines - text.endswith(b"\n"), 0) :]) if lines else b""


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
        return [as_plain(item) for item in answer.data.instances]

    columns = (("NAME", "name"), ("STATE", "state"), ("MEMORY", "memory"), ("CPU", "cpu"))
    found = run(data, work)
    if format_ == TABLE:
        for item in found:
            for column, member, shown in (
                ("memory", "rss_bytes", size),
                ("cpu", "cpu_time_ms", lasting),
                ("up", "uptime_ms", lasting),
            ):
                item[column] = None if item.get(member) is None else shown(item[member])
    show(found, format_, (*columns, ("UP", "up")))


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

"""`torpor checkpoint`, and `torpor branch`."""

from typing import Any

import click

from torpor.cli.client import Server, run
from torpor.cli.complete import Completion, checkpoint_names, instance_names
from torpor.cli.group import ObjectGroup, removal
from torpor.cli.instance import (
    CHECKPOINT,
    INSTANCE,
    Source,
    make,
    new_instance_options,
    with_image_names,
)
from torpor.cli.output import output_option, show

PATH = "/v1/instances/checkpoints"
COLUMNS = (
    ("NAME", "name"),
    ("UUID", "uuid"),
    ("IMAGE", "image"),
    ("MEMORY", "memory_mb"),
    ("CREATED", "created_at"),
)
_SLEEPS = "It sleeps until a request to one of its ports, or `torpor instance start`, wakes it."


@click.group(cls=ObjectGroup)
def checkpoint() -> None:
    """Checkpoints: saved states that instances can go on from, any number of times."""


@checkpoint.command("list")
@output_option
@click.pass_obj
def list_command(data: str | None, format_: str) -> None:
    """List checkpoints, oldest first."""

    async def work(server: Server) -> list[Any]:
        answer = await server.own("GET", PATH)
        return await with_image_names(server, answer["instances"], format_)

    show(run(data, work), format_, COLUMNS)


@checkpoint.command()
@click.argument("instance", shell_complete=instance_names)
@click.argument("name", required=False)
@click.option("--tag", "tags", multiple=True, help="In place of the instance's own.")
@click.pass_obj
def create(data: str | None, instance: str, name: str | None, tags: tuple[str, ...]) -> None:
    """Save the state of INSTANCE, which runs on, as checkpoint NAME, and print that name."""

    async def work(server: Server) -> str:
        (source,) = await server.resolve("instance", [instance])
        body: dict[str, Any] = {"from": source, "name": name, "tags": list(tags) or None}
        (made,) = (await server.own("POST", PATH, json=body))["instances"]
        return str(made["name"])

    click.echo(run(data, work))


def _going_on(name: str, source: Source, names: Completion, summary: str) -> click.Command:
    """The command that makes an instance of a saved or living state."""

    @click.command(name, help=f"{summary}\n\n{_SLEEPS}")
    @click.argument(source.kind, shell_complete=names)
    @click.argument("name", required=False)
    @new_instance_options
    @click.pass_obj
    def command(data: str | None, /, format_: str, **options: Any) -> int:
        return make(data, format_, source, options.pop(source.kind), **options)

    return command


checkpoint.add_command(
    _going_on(
        "restore",
        CHECKPOINT,
        checkpoint_names,
        "Make instance NAME that goes on from CHECKPOINT, which stays.",
    )
)
checkpoint.add_command(
    removal(
        "checkpoint",
        checkpoint_names,
        lambda platform: platform.instances.delete_checkpoint_instances,
        "Remove checkpoints; instances that came from them stay.",
    )
)
branch = _going_on(
    "branch",
    INSTANCE,
    instance_names,
    "Make instance NAME that goes on from where INSTANCE is now; both have lives of their own.",
)

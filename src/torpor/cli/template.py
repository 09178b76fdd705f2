"""`torpor template`."""

from typing import Any

import click

from torpor.cli.client import Server, run
from torpor.cli.complete import image_names, template_names
from torpor.cli.group import ObjectGroup, removal
from torpor.cli.instance import COLUMNS, with_image_names
from torpor.cli.output import output_option, show
from torpor.cli.quantities import Memory
from torpor.errors import TorporError


@click.group(cls=ObjectGroup)
def template() -> None:
    """Templates: instances that others are cloned from in an instant."""


@template.command("list")
@output_option
@click.pass_obj
def list_command(data: str | None, format_: str) -> None:
    """List templates."""

    async def work(server: Server) -> list[Any]:
        found = await server.sdk.templates.list(details=True)
        return await with_image_names(server, found, format_)

    show(run(data, work), format_, COLUMNS)


@template.command()
@click.argument("name")
@click.argument("image", shell_complete=image_names)
@click.option("-M", "--memory", "memory_mb", type=Memory(), default="128M", show_default=True)
@output_option
@click.pass_obj
def create(data: str | None, name: str, image: str, memory_mb: int, format_: str) -> None:
    """Start an instance of IMAGE, and make template NAME of it once it is ready."""

    async def work(server: Server) -> list[Any]:
        args = {"image": image, "memory_mb": memory_mb}
        answer = await server.sdk.api.platform.instances.get_template_instances(name=[name])
        if answer.data.instances[0].status != "error":
            raise TorporError(
                f"a template with the name '{name}' already exists: take another name, or remove "
                f"it by `torpor template rm {name}`"
            )
        made = await server.sdk.templates.prepare(name, create_args=args)
        return await with_image_names(server, [made], format_)

    show(run(data, work), format_, COLUMNS)


template.add_command(
    removal(
        "template",
        template_names,
        lambda platform: platform.instances.delete_template_instances,
        "Remove templates.",
    )
)

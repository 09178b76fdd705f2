"""`torpor template`."""

from typing import Any

import click

from torpor.cli.client import Server, report, run
from torpor.cli.complete import image_names, references_to, template_names
from torpor.cli.instance import COLUMNS
from torpor.cli.output import confirm, output_option, show


@click.group()
def template() -> None:
    """Templates: instances that others are cloned from in an instant."""


@template.command("list")
@output_option
@click.pass_obj
def list_command(data: str | None, format_: str) -> None:
    """List templates."""

    async def work(server: Server) -> list[Any]:
        return list(await server.sdk.templates.list(details=True))

    show(run(data, work), format_, COLUMNS)


@template.command()
@click.argument("name")
@click.argument("image", shell_complete=image_names)
@click.option("-M", "--memory", "memory_mb", type=int, default=128, show_default=True)
@output_option
@click.pass_obj
def create(data: str | None, name: str, image: str, memory_mb: int, format_: str) -> None:
    """Start an instance of IMAGE, and make template NAME of it once it is ready."""

    async def work(server: Server) -> Any:
        args = {"image": image, "memory_mb": memory_mb}
        return await server.sdk.templates.prepare(name, create_args=args)

    show([run(data, work)], format_, COLUMNS)


@template.command()
@references_to(template_names)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def rm(data: str | None, references: tuple[str, ...], yes: bool) -> int:
    """Remove templates."""
    if not yes:
        confirm(f"Remove {', '.join(references)}?")

    async def work(server: Server) -> list[Any]:
        named = await server.resolve("template", references)
        answer = await server.sdk.api.platform.instances.delete_template_instances(body=named)
        return list(answer.data.instances)

    return report(run(data, work), lambda item: f"{item.name} removed")

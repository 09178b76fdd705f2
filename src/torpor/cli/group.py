"""Groups of commands on one kind of object, and what such groups have in common."""

from collections.abc import Callable
from typing import Any

import click

from torpor.cli.client import Server, report, run
from torpor.cli.complete import Completion, references_to
from torpor.cli.output import confirm

_OTHER_NAMES = {"delete": "rm", "ls": "list"}
"""What other command lines call a command."""


class ObjectGroup(click.Group):
    """A group whose commands are known by their usual other names, too."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        other = _OTHER_NAMES.get(cmd_name)
        return found if found is not None or other is None else super().get_command(ctx, other)


def removal(
    kind: str, names: Completion, operation: Callable[[Any], Any], summary: str
) -> click.Command:
    """The command `rm` of a kind of object; `operation` of the SDK's platform API deletes them."""

    @click.command("rm", help=summary)
    @references_to(names)
    @click.option("-y", "--yes", is_flag=True, help="Do not ask.")
    @click.pass_obj
    def rm(data: str | None, references: tuple[str, ...], yes: bool) -> int:
        if not yes:
            confirm(f"Remove {', '.join(references)}?")

        async def work(server: Server) -> list[Any]:
            named = await server.resolve(kind, references, undone="removed")
            answer = await operation(server.sdk.api.platform)(body=named)
            key = "service_groups" if kind == "service" else "instances"
            return list(getattr(answer.data, key))

        return report(run(data, work), lambda item: f"{item.name} removed")

    return rm

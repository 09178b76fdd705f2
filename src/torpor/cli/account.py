"""`torpor token`, `torpor quota` and `torpor node`."""

from typing import Any

import click

from torpor.cli.client import Server, run
from torpor.cli.group import ObjectGroup
from torpor.cli.output import output_option, say, show
from torpor.controller.quotas import Quotas
from torpor.errors import UsageError

_TOKEN_COLUMNS = (
    ("NAME", "name"),
    ("SCOPES", "scopes"),
    ("CREATED", "created_at"),
    ("EXPIRES", "expires_at"),
)


@click.group(cls=ObjectGroup)
def token() -> None:
    """API tokens."""


@token.command("list")
@output_option
@click.pass_obj
def token_list(data: str | None, format_: str) -> None:
    """List tokens; the tokens themselves nobody can show."""

    async def work(server: Server) -> list[Any]:
        return list((await server.own("GET", "/torpor/v1/tokens"))["tokens"])

    show(run(data, work), format_, _TOKEN_COLUMNS)


@token.command("create")
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(["read", "write", "admin"]),
    default=("read", "write"), show_default=True,
)  # fmt: skip
@click.option("--expires", "expires_s", type=click.IntRange(1), metavar="SECONDS")
@click.option("--user", help="Another user, who is made if new.")
@click.pass_obj
def token_create(
    data: str | None, name: str, scopes: tuple[str, ...], expires_s: int | None, user: str | None
) -> None:
    """Make a token and print it, once."""
    body: dict[str, Any] = {"name": name, "scopes": list(scopes)}
    if expires_s is not None:
        body["expires_s"] = expires_s
    if user is not None:
        body["user"] = user

    async def work(server: Server) -> str:
        answer = await server.own("POST", "/torpor/v1/tokens", json=body)
        return str(answer["tokens"][0]["token"])

    click.echo(run(data, work))
    say("keep it: it is not shown again")


@token.command("rm")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def token_rm(data: str | None, names: tuple[str, ...]) -> int:
    """Revoke tokens."""

    async def work(server: Server) -> list[dict[str, Any]]:
        body = [{"name": name} for name in names]
        answer = await server.own("DELETE", "/torpor/v1/tokens", json=body)
        return list(answer["tokens"])

    status = 0
    for item in run(data, work):
        if item["status"] == "error":
            say(f"torpor: {item['name']}: {item['message']}")
            status = 1
        else:
            click.echo(f"{item['name']} revoked")
    return status


@click.group(invoke_without_command=True)
@output_option
@click.pass_context
def quota(context: click.Context, format_: str) -> None:
    """Show quotas, or set another user's."""
    if context.invoked_subcommand is not None:
        return

    async def work(server: Server) -> list[Any]:
        answer = await server.sdk.api.platform.users.get_user()
        return list(answer.data.quotas)

    columns = (
        ("INSTANCES", "used.instances"),
        ("OF", "hard.instances"),
        ("LIVE", "used.live_instances"),
        ("OF", "hard.live_instances"),
        ("LIVE MB", "used.live_memory_mb"),
        ("OF", "hard.live_memory_mb"),
        ("SERVICES", "used.service_groups"),
        ("OF", "hard.service_groups"),
    )
    show(run(context.obj, work), format_, columns)


@quota.command("set")
@click.argument("user")
@click.argument("settings", nargs=-1, required=True, metavar="NAME=NUMBER...")
@click.pass_obj
def quota_set(data: str | None, user: str, settings: tuple[str, ...]) -> None:
    """Set what differs from the default quotas of USER."""
    quotas = {}
    for setting in settings:
        name, _, number = setting.partition("=")
        if not number.isdecimal():
            raise UsageError(f"'{setting}': must be NAME=NUMBER, as instances=100")
        if name not in Quotas.__struct_fields__:
            known = ", ".join(Quotas.__struct_fields__)
            raise UsageError(f"'{setting}': there is no quota '{name}'; there are {known}")
        quotas[name] = int(number)

    async def work(server: Server) -> None:
        body = {"user": user, "quotas": quotas}
        await server.own("PUT", "/torpor/v1/quotas", json=body)

    run(data, work)


@click.group()
def node() -> None:
    """The machines of the server: this one."""


@node.command("list")
@output_option
@click.pass_obj
def node_list(data: str | None, format_: str) -> None:
    """List nodes."""

    async def work(server: Server) -> list[Any]:
        answer = await server.sdk.api.controlplane.nodes.list_nodes()
        return list(answer.data.nodes)

    columns = (
        ("NAME", "name"),
        ("UUID", "uuid"),
        ("STATE", "state"),
        ("CPUS", "vcpus"),
        ("MEMORY", "memory_mib"),
        ("UP S", "uptime_seconds"),
    )
    show(run(data, work), format_, columns)

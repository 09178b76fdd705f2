"""`torpor service`."""

from typing import Any

import click

from torpor.cli.client import Server, run
from torpor.cli.complete import references_to, service_names
from torpor.cli.group import ObjectGroup, removal
from torpor.cli.output import output_option, show
from torpor.controller.groups import HTTP, HTTPS
from torpor.errors import UsageError

COLUMNS = (
    ("NAME", "name"),
    ("UUID", "uuid"),
    ("PORTS", "services.port"),
    ("DOMAINS", "domains.fqdn"),
    ("INSTANCES", "instances.name"),
    ("PERSISTENT", "persistent"),
)


PORT = "PORT[:DESTINATION][/HANDLERS]"
HANDLERS: dict[str, dict[str, Any]] = {
    "tcp": {"handlers": []},
    "passthrough": {"handlers": [], "tls_passthrough": True},
}


def parse_port(word: str) -> dict[str, Any]:
    """`443:8080`, or `8080` for both, as a service. Raises UsageError.

    Behind it `/http+tls` and so on as the API has them, `/tcp` for none, or `/passthrough`.
    """
    ports, slash, handlers = word.partition("/")
    port, _, destination = ports.partition(":")
    if not port.isdecimal() or not (destination or port).isdecimal() or (slash and not handlers):
        raise UsageError(f"option '-p' needs {PORT}, as 443:8080 or 6379/tcp, not '{word}'")
    service: dict[str, Any] = {"port": int(port), "destination_port": int(destination or port)}
    if handlers:
        service |= HANDLERS.get(handlers, {"handlers": handlers.split("+")})
    if not {"http", "tls", "redirect"}.issuperset(service.get("handlers", ())):
        raise UsageError(
            f"option '-p' takes the handlers http, tls and redirect, joined by +, or tcp or "
            f"passthrough, not '{handlers}'"
        )
    if handlers == "tcp" and service["port"] in (HTTP, HTTPS):
        raise UsageError(
            f"option '-p' is '{word}': ports {HTTP} and {HTTPS} are for HTTP by host names; "
            f"plain TCP needs a port of its own, as {service['destination_port']}/tcp"
        )
    return service


def group_of(name: str | None, services: list[dict[str, Any]]) -> dict[str, Any]:
    """The service group of a new instance: its name, if it is given one, leads there."""
    return {"services": services, **({"domains": [{"name": name}]} if name else {})}


@click.group(cls=ObjectGroup)
def service() -> None:
    """Service groups: which host names and ports lead to which instances."""


@service.command("list")
@output_option
@click.pass_obj
def list_command(data: str | None, format_: str) -> None:
    """List service groups."""

    async def work(server: Server) -> list[Any]:
        return list(await server.sdk.services.list())

    show(run(data, work), format_, COLUMNS)


@service.command()
@references_to(service_names)
@output_option
@click.pass_obj
def get(data: str | None, references: tuple[str, ...], format_: str) -> None:
    """Show service groups."""

    async def work(server: Server) -> list[Any]:
        uuids = [each["uuid"] for each in await server.resolve("service", references)]
        answer = await server.sdk.api.platform.services.get_service_groups(uuid=uuids)
        return list(answer.data.service_groups)

    show(run(data, work), format_, COLUMNS)


@service.command()
@click.argument("name", required=False)
@click.option("-p", "--port", "services", multiple=True, required=True, metavar=PORT)
@click.option("-d", "--domain", "domains", multiple=True, help="With a final dot: as it is.")
@output_option
@click.pass_obj
def create(
    data: str | None,
    name: str | None,
    services: tuple[str, ...],
    domains: tuple[str, ...],
    format_: str,
) -> None:
    """Make a service group."""
    spec: dict[str, Any] = {"services": [parse_port(service) for service in services]}
    if name:
        spec["name"] = name
    if domains:
        spec["domains"] = [{"name": domain} for domain in domains]

    async def work(server: Server) -> Any:
        return await server.sdk.services.create(**spec)

    show([run(data, work)], format_, COLUMNS)


service.add_command(
    removal(
        "service",
        service_names,
        lambda platform: platform.services.delete_service_groups,
        "Remove service groups that no instance is attached to.",
    )
)

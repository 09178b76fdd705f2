"""`torpor deploy`: from a directory or an image to a URL."""

from pathlib import Path
from typing import Any

import click

from torpor.cli.client import Server, run
from torpor.cli.instance import environment
from torpor.cli.output import say
from torpor.cli.service import parse_port
from torpor.datadir import data_dir
from torpor.errors import UsageError
from torpor.images import ImageStore
from torpor.images.names import parse_reference

START_TIMEOUT_S = 60


@click.command()
@click.argument("source", metavar="DIR|IMAGE")
@click.option("-n", "--name")
@click.option("-p", "--port", "ports", multiple=True, metavar="PORT:DESTINATION")
@click.option("-M", "--memory", "memory_mb", type=int, default=256, show_default=True)
@click.option("-e", "--env", "env", multiple=True, metavar="K=V")
@click.option(
    "--scale-to-zero", "policy", type=click.Choice(["on", "off", "idle"]), default="on",
    show_default=True,
)  # fmt: skip
@click.option("--stateful", type=bool, default=True, show_default=True)
@click.option("--cooldown", default="1000ms", show_default=True)
@click.pass_obj
def deploy(
    data: str | None,
    source: str,
    name: str | None,
    ports: tuple[str, ...],
    memory_mb: int,
    env: tuple[str, ...],
    policy: str,
    stateful: bool,
    cooldown: str,
) -> None:
    """Build DIR, or take IMAGE, and run it behind a URL."""
    path = Path(source)
    store = ImageStore(data_dir(data))
    image = _built(store, path) if path.is_dir() else source
    resolved = store.resolve(image)
    exposed = [port.partition("/")[0] for port in resolved.config.exposed_ports]
    if not ports and not exposed:
        raise UsageError(f"{source} exposes no port: give -p 443:PORT")
    wanted = ports or (f"443:{exposed[0]}", f"80:{exposed[0]}")
    services = [parse_port(port) for port in wanted]
    spec: dict[str, Any] = {
        "image": image,
        "memory_mb": memory_mb,
        "autostart": False,
        "service_group": {"services": services},
        "scale_to_zero": {
            "policy": policy,
            "stateful": stateful,
            "cooldown_time_ms": _milliseconds(cooldown),
        },
    }
    if name:
        spec["name"] = name
    if env:
        spec["env"] = environment(env)

    async def work(server: Server) -> Any:
        made = await server.sdk.instances.create(**spec)
        reference = {"uuid": made.uuid}
        await server.own("POST", "/torpor/v1/prepare", json=[reference])
        await server.sdk.instances.get(uuid=made.uuid).start()
        await server.sdk.instances.get(uuid=made.uuid).wait(
            state="running", timeout_seconds=START_TIMEOUT_S
        )
        state = await server.own("GET", "/torpor/v1/status")
        return await server.sdk.instances.get(uuid=made.uuid), state["public_ports"]

    made, public_ports = run(data, work)
    say(f"{made.name} {made.state}")
    for domain in made.service_group.domains:
        for service in services:
            click.echo(_url(domain.fqdn, service["port"], public_ports))


def _url(host: str, port: int, public_ports: dict[str, int]) -> str:
    """Where clients find a service."""
    scheme = "http" if port == 80 else "https"
    public = public_ports.get(str(port), port)
    default = {"http": 80, "https": 443}[scheme]
    return f"{scheme}://{host}" if public == default else f"{scheme}://{host}:{public}"


def _built(store: ImageStore, directory: Path) -> str:
    """Builds a directory's image; its digest."""
    from torpor.images.build import Builder, BuildOptions
    from torpor.images.settings import load_settings
    from torpor.images.transports import Access

    tag = parse_reference(f"{directory.resolve().name.lower()}:latest")
    builder = Builder(store, load_settings(store.data_dir), Access("", None, False), say)
    return builder.build(BuildOptions(directory=directory, tags=(tag,)))


def _milliseconds(text: str) -> int:
    for unit, factor in (("ms", 1), ("s", 1000), ("m", 60_000)):
        number = text.removesuffix(unit)
        if number != text and number.isdigit():
            return int(number) * factor
    raise UsageError(f"option '--cooldown' needs a time as 1000ms, 5s or 1m, not '{text}'")

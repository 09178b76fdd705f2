"""`torpor deploy`: from a directory or an image to a URL."""

import base64
from pathlib import Path
from typing import Any

import click

from torpor.cli.client import Server, run
from torpor.cli.instance import environment
from torpor.cli.output import say
from torpor.cli.service import PORT, parse_port
from torpor.datadir import data_dir
from torpor.errors import ImageNotFoundError, TorporError, UsageError
from torpor.images import ImageStore
from torpor.images.config import the_port
from torpor.images.names import parse_reference

START_TIMEOUT_S = 60
SHOWN_LOG_BYTES = 2000


@click.command()
@click.argument("source", metavar="DIR|IMAGE")
@click.option("-n", "--name")
@click.option("-p", "--port", "ports", multiple=True, metavar=PORT)
@click.option("-M", "--memory", "memory_mb", type=int, default=256, show_default=True)
@click.option("-e", "--env", "env", multiple=True, metavar="K=V")
@click.option(
    "--scale-to-zero", "policy", type=click.Choice(["on", "off", "idle"]), default="on",
    show_default=True,
)  # fmt: skip
@click.option("--stateful", type=bool, default=True, show_default=True)
@click.option("--cooldown", default="1000ms", show_default=True)
@click.option("--wake-on-timer", is_flag=True, help="Its program's next timer wakes it as well.")
@click.option(
    "--retry-idempotent", is_flag=True,
    help="Send idempotent HTTP requests without a body once more if they got no answer.",
)  # fmt: skip
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
    wake_on_timer: bool,
    retry_idempotent: bool,
) -> None:
    """Build DIR, or take IMAGE, and run it behind a URL.

    What has a slash or begins with a dot is a directory, anything else a stored image. A name that
    is deployed already gets the new version once that runs; its host name stays.
    """
    store = ImageStore(data_dir(data))
    image = _built(store, Path(source)) if "/" in source or source.startswith(".") else source
    try:
        resolved = store.resolve(image)
    except ImageNotFoundError as error:
        if Path(source).is_dir():
            raise UsageError(f"no image '{source}'; for the directory say ./{source}") from error
        raise
    if not ports:
        port = the_port(resolved.config, source, "say which with -p 443:PORT -p 80:PORT")
        ports = (f"443:{port}", f"80:{port}")
    services = [parse_port(port) for port in ports]
    if retry_idempotent:
        services = [{**service, "retry_idempotent": True} for service in services]
    spec: dict[str, Any] = {
        "image": image,
        "memory_mb": memory_mb,
        "autostart": False,
        "scale_to_zero": {
            "policy": policy,
            "stateful": stateful,
            "cooldown_time_ms": _milliseconds(cooldown),
            **({"wake_on_timer": True} if wake_on_timer else {}),
        },
    }
    if env:
        spec["env"] = environment(env)

    async def work(server: Server) -> Any:
        former = await _deployed(server, name) if name else None
        made = await server.sdk.instances.create(**spec, **_place(name, former, services))
        try:
            await _start(server, made.uuid)
        except TorporError:
            if former is not None:
                await server.sdk.instances.get(uuid=made.uuid).delete()
            raise
        if former is not None:
            pair = {"uuid": made.uuid, "former": former["uuid"], "services": services}
            await server.own("POST", "/torpor/v1/replace", json=[pair])
        state = await server.own("GET", "/torpor/v1/status")
        return await server.sdk.instances.get(uuid=made.uuid), state["public_ports"]

    made, public_ports = run(data, work)
    say(f"{made.name} {made.state}")
    for domain in made.service_group.domains:
        for service in services:
            click.echo(_url(domain.fqdn, service, public_ports))


async def _deployed(server: Server, name: str) -> dict[str, Any] | None:
    """The instance of a name, if there is one. Raises TorporError if it has no service."""
    response = await server.sdk.api.platform.instances.get_instances(name=[name], details=True)
    (found,) = response.data.instances
    if found.status == "error":
        return None
    instance: dict[str, Any] = found.model_dump()
    if not instance.get("service_group"):
        raise TorporError(
            f"instance '{name}' has no service, so nothing was deployed there: take another name, "
            f"or remove it by `torpor instance rm {name}`"
        )
    return instance


def _place(
    name: str | None, former: dict[str, Any] | None, services: list[dict[str, Any]]
) -> dict[str, Any]:
    """Name and service group of a new instance.

    A new version has its own group at first, at ports that no group has to itself.
    """
    if former is not None:
        first = zip((443, 80), services, strict=False)
        own = [
            {"port": port, "destination_port": service["destination_port"]}
            for port, service in first
        ]
        return {"service_group": {"services": own}}
    if name is None:
        return {"service_group": {"services": services}}
    return {"name": name, "service_group": {"services": services, "domains": [{"name": name}]}}


async def _start(server: Server, uuid: str) -> None:
    """Starts an instance as its configuration's template; returns when it runs.

    Raises TorporError if it does not, behind the end of its log.
    """
    await server.own("POST", "/torpor/v1/prepare", json=[{"uuid": uuid}])
    wanted = [{"uuid": uuid, "timeout_s": START_TIMEOUT_S}]
    try:
        await server.own("PUT", "/v1/instances/start", json=wanted)
    except TorporError as error:
        (found,) = (await server.own("GET", f"/v1/instances/{uuid}"))["instances"]
        end = [{"uuid": uuid, "offset": -SHOWN_LOG_BYTES}]
        (log,) = (await server.own("GET", "/v1/instances/log", json=end))["instances"]
        for line in base64.b64decode(log["output"]).decode(errors="replace").splitlines():
            say(f"    {line}")
        status = found.get("exit_code")
        ended = "" if status is None else f"; its program ended with status {status}"
        raise TorporError(f"{found['name']}: {error}{ended}") from error


def _url(host: str, service: dict[str, Any], public_ports: dict[str, int]) -> str:
    """Where clients find a service."""
    port = service["port"]
    public = public_ports.get(str(port), port)
    scheme = "http" if port == 80 else "https"
    if service.get("handlers") == [] and not service.get("tls_passthrough"):
        scheme = "tcp"
    default = {"http": 80, "https": 443}.get(scheme)
    return f"{scheme}://{host}" if public == default else f"{scheme}://{host}:{public}"


def _built(store: ImageStore, directory: Path) -> str:
    """Builds a directory's image; its name, with the digest that the name has now."""
    from torpor.images.build import Builder, BuildOptions
    from torpor.images.settings import load_settings
    from torpor.images.transports import Access

    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory")
    if not (directory / "Dockerfile").exists():
        raise UsageError(
            f"{directory} has no Dockerfile: write one, or have `torpor build -t NAME {directory}` "
            "suggest one, and deploy NAME"
        )
    tag = parse_reference(f"{directory.resolve().name.lower()}:latest")
    builder = Builder(store, load_settings(store.data_dir), Access("", None, False), say)
    digest = builder.build(BuildOptions(directory=directory, tags=(tag,)))
    # The name alone may mean another image as soon as another directory of that name is built.
    return f"{tag.familiar}@{digest}"


def _milliseconds(text: str) -> int:
    for unit, factor in (("ms", 1), ("s", 1000), ("m", 60_000)):
        number = text.removesuffix(unit)
        if number != text and number.isdecimal():
            return int(number) * factor
    raise UsageError(f"option '--cooldown' needs a time as 1000ms, 5s or 1m, not '{text}'")

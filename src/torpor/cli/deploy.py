"""`torpor deploy`: from a directory or an image to a URL."""

import base64
from pathlib import Path
from typing import Any

import click

from torpor.cli.client import Server, run
from torpor.cli.instance import environment, life_options, policy_of
from torpor.cli.output import say
from torpor.cli.quantities import Memory
from torpor.cli.service import PORT, group_of, parse_port
from torpor.cli.wording import in_words
from torpor.controller.controller import REPLACE_DRAIN_MS
from torpor.controller.errors import ItemError
from torpor.controller.model import OUT_OF_MEMORY
from torpor.controller.rules import MEMORY_MB, check_memory, is_hostname, random_name
from torpor.controller.starting import READY_S
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
@click.option("-p", "--port", "services", multiple=True, metavar=PORT)
@click.option(
    "-M", "--memory", "memory_mb", type=Memory(), default="256M", show_default=True, help="Or 1G."
)
@click.option("-e", "--env", "env", multiple=True, metavar="K=V")
@life_options(scale_to_zero="on", stateful="true", cooldown="1000ms")
@click.option(
    "--retry-idempotent", is_flag=True,
    help="Send idempotent HTTP requests without a body once more if they got no answer.",
)  # fmt: skip
@click.pass_obj
def deploy(
    data: str | None,
    source: str,
    name: str | None,
    services: tuple[str, ...],
    memory_mb: int,
    env: tuple[str, ...],
    scale_to_zero: str,
    stateful: bool,
    cooldown_time_ms: int,
    wake_on_timer: bool,
    restart_policy: str | None,
    retry_idempotent: bool,
) -> None:
    """Build DIR, or take IMAGE, and run it behind a URL.

    What has a slash or begins with a dot is a directory, anything else a stored image. A name that
    is deployed already gets the new version once that runs; its host name stays.
    """
    try:
        check_memory(memory_mb, *MEMORY_MB)
    except ItemError as error:  # before an image is built for nothing
        raise TorporError(in_words(str(error))) from error
    store = ImageStore(data_dir(data))
    remedy = "say which with -p 443:PORT -p 80:PORT"
    image = source
    if "/" in source or source.startswith("."):
        no_port = "" if services else f"{source} exposes no TCP port: {remedy}"
        image = _built(store, Path(source), no_port)
    try:
        resolved = store.resolve(image)
    except ImageNotFoundError as error:
        if Path(source).is_dir():
            raise UsageError(f"no image '{source}'; for the directory say ./{source}") from error
        raise
    if not services:
        port = the_port(resolved.config, source, remedy)
        services = (f"443:{port}", f"80:{port}")
    wanted = [parse_port(service) for service in services]
    if retry_idempotent:
        wanted = [{**service, "retry_idempotent": True} for service in wanted]
    spec: dict[str, Any] = {
        "image": image,
        "memory_mb": memory_mb,
        "autostart": False,
        "scale_to_zero": policy_of(scale_to_zero, stateful, cooldown_time_ms, wake_on_timer),
    }
    if restart_policy is not None:
        spec["restart_policy"] = restart_policy
    if env:
        spec["env"] = environment(env)

    async def work(server: Server) -> Any:
        former = await _deployed(server, name) if name else None
        placed = _place(name or random_name(), former, wanted)
        made = await server.sdk.instances.create(**spec, **placed)
        try:
            await _start(server, made.uuid)
            if former is not None:
                await _say_what_is_waited_for(server, former)
                pair = {"uuid": made.uuid, "former": former["uuid"], "services": wanted}
                await server.own("POST", "/torpor/v1/replace", json=[pair])
        except TorporError as error:
            raise await _given_up(server, made.uuid, former, error) from error
        state = await server.own("GET", "/torpor/v1/status")
        return await server.sdk.instances.get(uuid=made.uuid), state["public_ports"]

    made, public_ports = run(data, work)
    say(f"{made.name} {made.state}")
    if (made.boot_time_us or 0) >= READY_S * 1_000_000:
        say(_nobody_listens(made.name, wanted))
    for domain in made.service_group.domains:
        for service in wanted:
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
    name: str, former: dict[str, Any] | None, services: list[dict[str, Any]]
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
        placed = {"service_group": {"services": own}}
        # As its program is to be called when it has the other's place.
        return {**placed, "hostname": name} if is_hostname(name) else placed
    return {"name": name, "service_group": group_of(name, services)}


async def _say_what_is_waited_for(server: Server, former: dict[str, Any]) -> None:
    """Says so where the former version has requests or connections, which are waited for."""
    path = f"/v1/instances/{former['uuid']}/metrics"
    answer = await server.own("GET", path, headers={"Accept": "application/json"})
    (used,) = answer["instances"]
    kinds = (("request", used.get("nreqs")), ("connection", used.get("nconns")))
    open_ = [f"{count} open {kind}{'s' * (count != 1)}" for kind, count in kinds if count]
    if open_:
        say(
            f"{former['name']}: waiting for the former version's {' and '.join(open_)}, "
            f"{REPLACE_DRAIN_MS // 1000} s at most"
        )


async def _start(server: Server, uuid: str) -> None:
    """Starts an instance as its configuration's template; returns when it runs.

    Raises TorporError if it does not, behind the end of its log.
    """
    await server.own("POST", "/torpor/v1/prepare", json=[{"uuid": uuid}])
    wanted = [{"uuid": uuid, "timeout_s": START_TIMEOUT_S}]
    try:
        await server.own("PUT", "/v1/instances/start", json=wanted)
    except TorporError as error:
        found = await _instance(server, uuid)
        end = [{"uuid": uuid, "offset": -SHOWN_LOG_BYTES}]
        (log,) = (await server.own("GET", "/v1/instances/log", json=end))["instances"]
        for line in base64.b64decode(log["output"]).decode(errors="replace").splitlines():
            say(f"    {line}")
        raise TorporError(f"{error}{_ended(found)}") from error


def _ended(instance: dict[str, Any]) -> str:
    """How an instance's program ended, as the end of a sentence; maybe empty."""
    status = instance.get("exit_code")
    if status is None:
        return ""
    if instance.get("stop_code") == OUT_OF_MEMORY:
        return f"; {instance['memory_mb']} MiB are too little for it: --memory gives it more"
    return f"; its program ended with status {status}"


async def _given_up(
    server: Server, uuid: str, former: dict[str, Any] | None, error: TorporError
) -> TorporError:
    """The error of a deployment that did not come off, with what is left of it.

    A first one stays, as a container of `docker run` does: what it left may say why. One that was
    to take another's place is removed, and that is as it was.
    """
    found = await _instance(server, uuid)
    name = found["name"]
    if former is None:
        return TorporError(
            f"{name}: {error}; it is kept, {found['state']}: `torpor instance logs {name}` shows "
            f"its log, `torpor deploy -n {name}` puts another in its place, and "
            f"`torpor instance rm {name}` removes it"
        )
    if name == former["name"]:  # it has the other's place already
        return TorporError(f"{name}: {error}")
    await server.own("DELETE", f"/v1/instances/{uuid}")
    return TorporError(
        f"{former['name']}: {error}; that one is removed, and the former one is as it was"
    )


async def _instance(server: Server, uuid: str) -> dict[str, Any]:
    """An instance as it is now. Raises TorporError."""
    (found,) = (await server.own("GET", f"/v1/instances/{uuid}"))["instances"]
    return dict(found)


def _nobody_listens(name: str, services: list[dict[str, Any]]) -> str:
    """What to know where a program ran, and nobody listened within the time for that."""
    ports = ", ".join(str(port) for port in {each["destination_port"]: 0 for each in services})
    return (
        f"warning: {name}: nobody listened on port {ports} within {READY_S:.0f} s, and requests "
        "fail until somebody does: its program must listen there at 0.0.0.0, not at 127.0.0.1, "
        f"or -p HOST:GUEST must name its port; `torpor instance logs {name}` shows its log"
    )


def _url(host: str, service: dict[str, Any], public_ports: dict[str, int]) -> str:
    """Where clients find a service."""
    port = service["port"]
    public = public_ports.get(str(port), port)
    scheme = "http" if port == 80 else "https"
    if service.get("handlers") == [] and not service.get("tls_passthrough"):
        scheme = "tcp"
    default = {"http": 80, "https": 443}.get(scheme)
    return f"{scheme}://{host}" if public == default else f"{scheme}://{host}:{public}"


def _built(store: ImageStore, directory: Path, no_port: str) -> str:
    """Builds a directory's image; its name, with the digest that the name has now.

    Raises TorporError, with `no_port` if that is given and the image will expose none.
    """
    from torpor.images.build import Builder, BuildOptions
    from torpor.images.settings import load_settings
    from torpor.images.transports import Access

    if not directory.is_dir():
        what = "not a directory" if directory.exists() else "no such directory"
        raise UsageError(f"{directory}: {what}: give one with a Dockerfile, or an image's name")
    if not (directory / "Dockerfile").exists():
        raise UsageError(
            f"{directory} has no Dockerfile: write one, or have `torpor build -t NAME {directory}` "
            "suggest one, and deploy NAME"
        )
    tag = parse_reference(f"{directory.resolve().name.lower()}:latest")
    builder = Builder(store, load_settings(store.data_dir), Access("", None, False), say)
    digest = builder.build(BuildOptions(directory, tags=(tag,), no_port=no_port))
    # The name alone may mean another image as soon as another directory of that name is built.
    return f"{tag.familiar}@{digest}"

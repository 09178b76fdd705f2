"""torpord: the store, the controller and the API in one process, one per data directory."""

import argparse
import asyncio
import contextlib
import errno
import gc
import importlib
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import NAMESPACE_URL, uuid5

import apsw
import uvloop

from torpor.api.auth import ensure_first_token
from torpor.api.service import Service
from torpor.controller import Controller
from torpor.controller.links import PUBLIC, Egress
from torpor.controller.proxy import ProxyClient
from torpor.controller.restart import Backoff
from torpor.controller.upkeep import Policy
from torpor.controller.vm import NoVmHost, VmHost
from torpor.datadir import data_dir
from torpor.errors import EXIT_TORPOR_FAILED, TorporError
from torpor.locks import TORPORD, HeldError, claim, sign
from torpor.serverlog import note
from torpor.settings import ServerSettings, load_server_settings
from torpor.store import NoSpaceError, Store
from torpor.vmhost import Host, Limits

DEFAULT_LISTEN = "127.0.0.1:7400"
LOCAL_SOCKET = "run/api.sock"
URL_FILE = "run/api.url"
PROXY_SOCKET = "run/proxy.sock"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server runs."""

    data_dir: Path
    listen: str = DEFAULT_LISTEN
    lower_tier: Path | None = None
    domain_suffix: str = "localhost"
    backoff: Backoff = Backoff()  # noqa: RUF009 -- immutable
    limits: Limits = Limits()  # noqa: RUF009 -- immutable
    public_ports: Mapping[int, int] = field(default_factory=dict)
    """What clients see in place of 80 and 443."""

    policy: Policy = Policy()  # noqa: RUF009 -- immutable
    egress: Egress = PUBLIC
    """Where guests' own connections may go."""

    @classmethod
    def of(cls, directory: Path, settings: ServerSettings) -> Self:
        """What config.toml, environment and flags say."""
        vms = settings.vms
        limits = Limits(
            per_template=vms.resting_per_template,
            total=vms.resting,
            keep_s=vms.resting_s,
            reuse=vms.reuse,
            memory_bytes=vms.memory_mb << 20,
        )
        return cls(
            directory,
            listen=settings.server.listen,
            lower_tier=Path(settings.server.lower_tier) if settings.server.lower_tier else None,
            domain_suffix=settings.server.domain_suffix,
            limits=limits,
            public_ports=settings.public_ports(),
            policy=settings.policy(),
            egress=settings.egress,
        )


@contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Holds the data directory for one torpord. Raises TorporError if another has it."""
    (data_dir / "run").mkdir(mode=0o700, exist_ok=True)
    try:
        lock = claim(data_dir / TORPORD)
    except HeldError as held:
        raise TorporError(
            f"torpord runs already on {data_dir} ({held}): `torpor down` ends it"
        ) from None
    with lock:
        sign(lock, os.getpid())
        yield


@asynccontextmanager
async def serving(settings: Settings, host: VmHost) -> AsyncIterator[Service]:
    """A server that accepts requests for as long as the block lasts."""
    data_dir = settings.data_dir
    name, _, port = settings.listen.rpartition(":")
    if not name or not port.isdecimal():
        raise TorporError(f"--listen {settings.listen}: must be HOST:PORT")
    with exclusive(data_dir):
        async with contextlib.AsyncExitStack() as held:
            store = Store(data_dir, lower=settings.lower_tier)
            held.callback(store.close)
            await ensure_first_token(store, lambda token: _write_token(data_dir / "token", token))
            owner = store.owners.all()[0]
            uuid = str(uuid5(NAMESPACE_URL, f"torpor:{owner.uuid}"))
            proxy = ProxyClient(data_dir / PROXY_SOCKET, _hello(settings, uuid), settings.egress)
            controller = Controller(
                data_dir,
                store,
                host,
                links=proxy,
                domain_suffix=settings.domain_suffix,
                backoff=settings.backoff,
                policy=settings.policy,
                tiered=settings.lower_tier is not None,
            )
            await controller.open()
            held.push_async_callback(controller.close)
            proxy.start(controller.router)
            held.push_async_callback(proxy.close)
            # Wakes are served already; the API's framework is what takes longest to import.
            app = await asyncio.to_thread(importlib.import_module, "torpor.api.app")
            api = await asyncio.to_thread(importlib.import_module, "torpor.api.server")
            tcp = held.enter_context(api.listen_tcp(name, int(port)))
            local = held.enter_context(api.listen_local(data_dir / LOCAL_SOCKET))
            address = f"{name}:{tcp.getsockname()[1]}"
            service = Service(controller, f"http://{address}", uuid)
            (data_dir / URL_FILE).write_text(service.endpoint + "\n")
            server = api.make_server(app.make_app(service))
            task = asyncio.create_task(server.serve(sockets=[tcp, local]))
            # What exists now lives as long as the process; collections pass it over. What comes
            # is mostly free of cycles: they are looked for less often than every 700 objects.
            gc.freeze()
            gc.set_threshold(20_000, 20, 20)
            try:
                yield service
            finally:
                server.stop()
                await task


def _hello(settings: Settings, uuid: str) -> dict[str, Any]:
    """What the proxy is told first."""
    return {
        "server": uuid,
        "public_ports": {str(port): seen for port, seen in settings.public_ports.items()},
        "suffix": settings.domain_suffix,
    }


async def run(settings: Settings, host: VmHost) -> None:
    """Serves until SIGTERM or SIGINT; says on standard output where, once it accepts."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings, host) as service:
        sys.stdout.write(f"api {service.endpoint}\n")
        sys.stdout.flush()
        await stop.wait()


class _Notes(logging.Handler):
    """What Python's libraries and this program report goes to the server's log."""

    def emit(self, record: logging.LogRecord) -> None:
        note(f"torpord: {self.format(record)}")


def main() -> int:
    """`torpord`: runs a server in this process until SIGTERM."""
    parser = argparse.ArgumentParser(prog="torpord", description=__doc__)
    parser.add_argument("--data", metavar="DIR")
    for flag in ("--listen", "--lower-tier", "--domain-suffix", "--proxy", "--proxy-tls"):
        parser.add_argument(flag)
    flags = parser.parse_args()
    logging.basicConfig(handlers=[_Notes()])
    try:
        directory = data_dir(flags.data)
        settings = load_server_settings(
            directory,
            server_listen=flags.listen,
            server_lower_tier=flags.lower_tier,
            server_domain_suffix=flags.domain_suffix,
            proxy_http=flags.proxy,
            proxy_tls=flags.proxy_tls,
        )
        serve(Settings.of(directory, settings))
    except (TorporError, OSError) as error:
        note(f"torpor: {error}")
        return EXIT_TORPOR_FAILED
    return 0


def serve(settings: Settings) -> None:
    """Runs a server in this process. Raises TorporError where its directory has no room for it."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings))
    except (OSError, apsw.FullError, NoSpaceError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise
        raise TorporError(
            f"no room in {settings.data_dir} to begin with: make some, "
            "or name another directory with --data"
        ) from error


async def _run(settings: Settings) -> None:
    # Each VM process takes a few descriptors here.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    problem = kvm_problem()
    if problem is None:
        await run(settings, Host(settings.data_dir, settings.limits))
    else:
        await run(settings, NoVmHost(f"{problem}: this server cannot run VMs"))


def kvm_problem() -> str | None:
    """Why VMs cannot be run here, or None."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    return None


def _write_token(path: Path, token: str) -> None:
    temporary = path.with_name(".token.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())

"""torpord: the store, the controller and the API in one process, one per data directory."""

import asyncio
import contextlib
import fcntl
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import uvloop

from torpor.api.app import make_app
from torpor.api.auth import ensure_first_token
from torpor.api.server import listen_local, listen_tcp, make_server
from torpor.api.service import Service
from torpor.controller import Controller
from torpor.controller.restart import Backoff
from torpor.controller.vm import NoVmHost, VmHost
from torpor.errors import TorporError
from torpor.store import Store

DEFAULT_LISTEN = "127.0.0.1:7400"
LOCK = "run/torpord.lock"
LOCAL_SOCKET = "run/api.sock"
URL_FILE = "run/api.url"
NO_VMS = (
    "This server cannot start VMs yet: snapshots in the VM process (torpor.vmprocess) are not "
    "part of this version; `torpor vm run` starts one without a server"
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server runs."""

    data_dir: Path
    listen: str = DEFAULT_LISTEN
    lower_tier: Path | None = None
    domain_suffix: str = "localhost"
    backoff: Backoff = Backoff()  # noqa: RUF009 -- immutable


@contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Holds the data directory for one torpord. Raises TorporError if another has it.

    A flock ends with its process, however that dies, so the next torpord never waits for a file.
    """
    (data_dir / "run").mkdir(mode=0o700, exist_ok=True)
    path = data_dir / LOCK
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            raise TorporError(
                f"torpord runs already on {data_dir} (process {pid}): `torpor down` ends it"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def holder(data_dir: Path) -> int | None:
    """The process that has a data directory, or None."""
    try:
        with (data_dir / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        try:
            return int((data_dir / LOCK).read_text())
        except ValueError:
            return None
    return None


@asynccontextmanager
async def serving(settings: Settings, host: VmHost) -> AsyncIterator[Service]:
    """A server that accepts requests for as long as the block lasts."""
    data_dir = settings.data_dir
    name, _, port = settings.listen.rpartition(":")
    if not name or not port.isdigit():
        raise TorporError(f"--listen {settings.listen}: must be HOST:PORT")
    with exclusive(data_dir), contextlib.ExitStack() as held:
        store = Store(data_dir, lower=settings.lower_tier)
        held.callback(store.close)
        token = await ensure_first_token(store)
        if token is not None:
            _write_token(data_dir / "token", token)
        controller = Controller(
            data_dir,
            store,
            host,
            domain_suffix=settings.domain_suffix,
            backoff=settings.backoff,
        )
        await controller.open()
        try:
            tcp = held.enter_context(listen_tcp(name, int(port)))
            local = held.enter_context(listen_local(data_dir / LOCAL_SOCKET))
            address = f"{name}:{tcp.getsockname()[1]}"
            owner = store.owners.all()[0]
            service = Service(
                controller, f"http://{address}", str(uuid5(NAMESPACE_URL, f"torpor:{owner.uuid}"))
            )
            (data_dir / URL_FILE).write_text(service.endpoint + "\n")
            server = make_server(make_app(service))
            task = asyncio.create_task(server.serve(sockets=[tcp, local]))
            # What exists now lives as long as the process; collections pass it over.
            gc.freeze()
            try:
                yield service
            finally:
                server.should_exit = True
                await task
        finally:
            await controller.close()


async def run(settings: Settings, host: VmHost | None = None) -> None:
    """Serves until SIGTERM or SIGINT; says on standard output where, once it accepts."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings, host or NoVmHost(NO_VMS)) as service:
        sys.stdout.write(f"api {service.endpoint}\n")
        sys.stdout.flush()
        await stop.wait()


def main(settings: Settings) -> None:
    """Runs a server in this process."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings))


def _write_token(path: Path, token: str) -> None:
    temporary = path.with_name(".token.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

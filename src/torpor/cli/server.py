"""`torpor up`, `torpor down` and `torpor status`."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torpor.binaries import find_binary
from torpor.cli.output import FORMATS, output_option, say, show
from torpor.datadir import data_dir
from torpor.errors import TorporError

if TYPE_CHECKING:
    from torpor.cli.client import Server
    from torpor.settings import ServerSettings

SUPERVISOR = "run/supervisor.pid"
URL_FILE = "run/api.url"
START_TIMEOUT_S = 60.0


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Of the API.  [default: 127.0.0.1:7400]")
@click.option(
    "--proxy", metavar="HOST:PORT", help="Of services on port 80.  [default: 127.0.0.1:8080]"
)
@click.option(
    "--proxy-tls", metavar="HOST:PORT", help="Of services on port 443.  [default: 127.0.0.1:8443]"
)
@click.option("--lower-tier", type=click.Path(path_type=Path), help="A directory for cold blobs.")
@click.option("--domain-suffix", help="Of domains without a trailing dot.  [default: localhost]")
@click.option("--foreground", is_flag=True, help="Serve until a signal, in this terminal.")
@click.pass_obj
def up(
    data: str | None,
    listen: str | None,
    proxy: str | None,
    proxy_tls: str | None,
    lower_tier: Path | None,
    domain_suffix: str | None,
    foreground: bool,
) -> int:
    """Start the server: torpord, and the proxy."""
    from torpor.settings import load_server_settings
    from torpor.supervisor import supervise

    directory = data_dir(data)
    settings = load_server_settings(
        directory,
        server_listen=listen,
        server_lower_tier=None if lower_tier is None else str(lower_tier.absolute()),
        server_domain_suffix=domain_suffix,
        proxy_http=proxy,
        proxy_tls=proxy_tls,
    )
    pid = _running_pid(directory)
    if pid is not None:
        raise TorporError(
            f"torpord runs already on {directory} (process {pid}): `torpor down` ends it"
        )
    for name in ("run", "logs"):
        (directory / name).mkdir(mode=0o700, exist_ok=True)
    (directory / URL_FILE).unlink(missing_ok=True)
    commands = [_torpord(directory, settings), _proxy(directory, settings)]
    if foreground:
        (directory / SUPERVISOR).write_text(f"{os.getpid()}\n")
        return supervise(commands)
    words = [word for command in commands for word in ("--", *command)]
    log_path = directory / "logs" / "server.log"
    with log_path.open("ab") as log:
        began = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "torpor.supervisor", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    (directory / SUPERVISOR).write_text(f"{process.pid}\n")
    wanted = ["api", "proxy", *(["proxy-tls"] if settings.proxy.tls else [])]
    for line in _await_urls(process, log_path, began, wanted):
        click.echo(line)
    return 0


def _torpord(directory: Path, settings: "ServerSettings") -> list[str]:
    server, proxy = settings.server, settings.proxy
    words = [sys.executable, "-m", "torpor.torpord", "--data", str(directory)]
    words += ["--listen", server.listen, "--domain-suffix", server.domain_suffix]
    words += ["--proxy", proxy.http, "--proxy-tls", proxy.tls]
    if server.lower_tier:
        words += ["--lower-tier", server.lower_tier]
    return words


def _proxy(directory: Path, settings: "ServerSettings") -> list[str]:
    words = [str(find_binary("torpor-proxy")), "--data", str(directory)]
    words += ["--http", settings.proxy.http]
    if settings.proxy.tls:
        words += ["--tls", settings.proxy.tls]
    return words


def _await_urls(
    process: "subprocess.Popen[bytes]", log_path: Path, began: int, wanted: list[str]
) -> list[str]:
    """Until all parts accept, what they say; raises TorporError with what went wrong."""
    ends_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends_s:
        lines = log_path.read_bytes()[began:].decode(errors="replace").splitlines(keepends=True)
        whole = [line.rstrip() for line in lines if line.endswith("\n")]
        said = {line.partition(" ")[0]: line for line in whole}
        if all(name in said for name in wanted):
            return [said[name] for name in wanted]
        errors = [line for line in whole if line.startswith(("torpor: ", "torpor-proxy: "))]
        if process.poll() is not None or any(" ended with status " in line for line in whole):
            process.terminate()
            process.wait()
            reason = errors[-1].partition(": ")[2] if errors else f"see {log_path}"
            raise TorporError(f"the server did not start: {reason}")
        time.sleep(0.02)
    process.terminate()
    raise TorporError(f"the server did not start within {START_TIMEOUT_S:.0f} s: see {log_path}")


@click.command()
@click.option("--now", is_flag=True, help="Do not put VMs into standby first: they run on.")
@click.option("--vms-only", is_flag=True, help="Put VMs away, and let the server run on.")
@click.pass_obj
def down(data: str | None, now: bool, vms_only: bool) -> None:
    """Put stateful instances into standby, stop the others, and end the server."""
    from torpor.cli.client import run  # the SDK behind it costs `up` more than the server itself

    directory = data_dir(data)
    pid = _running_pid(directory)
    if pid is None:
        raise TorporError(f"no server runs on {directory}")
    if not now:

        async def work(server: "Server") -> int:
            answer = await server.own("POST", "/torpor/v1/quiesce")
            return int(answer["left_running"])

        left = run(data, work)
        if left:
            say(f"{left} VMs did not end in time and run on: the next `torpor up` adopts them")
    if vms_only:
        return
    supervisor = _supervisor_of(directory, pid)
    os.kill(supervisor or pid, signal.SIGTERM)
    ends_s = time.monotonic() + 15
    while _running_pid(directory) is not None or _lives(supervisor):
        if time.monotonic() > ends_s:
            raise TorporError(f"process {pid} does not end: its log is in {directory}/logs")
        time.sleep(0.05)
    # Without its supervisor the proxy is still there.
    proxy = _proxy_pid(directory)
    if proxy is not None:
        os.kill(proxy, signal.SIGTERM)
    (directory / SUPERVISOR).unlink(missing_ok=True)
    (directory / URL_FILE).unlink(missing_ok=True)


def _lives(pid: int | None) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _running_pid(directory: Path) -> int | None:
    """The process that holds the data directory, or None."""
    from torpor.torpord import holder

    return holder(directory)


def _proxy_pid(directory: Path) -> int | None:
    """The process that listens for torpord, or None."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        holder = os.open(directory / "run", os.O_PATH | os.O_DIRECTORY)
        try:
            connection.connect(f"/proc/self/fd/{holder}/proxy.sock")
        except OSError:
            return None
        finally:
            os.close(holder)
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(peer[:4], "little")


def _supervisor_of(directory: Path, pid: int) -> int | None:
    """The supervisor, if it still is that process's parent: a pid alone may be another's now."""
    try:
        noted = int((directory / SUPERVISOR).read_text())
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None
    return noted if noted == parent else None


@click.command()
@output_option
@click.pass_obj
def status(data: str | None, format_: str) -> None:
    """Show how many there are of what, and how the server is."""

    from torpor.cli.client import run

    async def work(server: "Server") -> dict[str, Any]:
        health = await server.sdk.api.platform.node.healthz()
        own = await server.own("GET", "/torpor/v1/status")
        return {
            "versions": health.data.versions,
            "checks": {**health.data.checks, "proxy": own["proxy"]},
            "counts": own["counts"],
        }

    found = run(data, work)
    if format_ != FORMATS[0]:
        show([found], format_, ())
        return
    click.echo(f"torpor {found['versions']['torpor']}")
    for name, health in found["checks"].items():
        click.echo(f"{name}: {health}")
    for kind, states in found["counts"].items():
        each = ", ".join(f"{number} {state}" for state, number in states.items() if number)
        click.echo(f"{kind}s: {each or 'none'}")

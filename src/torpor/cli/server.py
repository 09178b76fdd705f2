"""`torpor up`, `torpor down` and `torpor status`."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from torpor.binaries import find_binary
from torpor.cli.output import TABLE, output_option, say, show
from torpor.datadir import data_dir
from torpor.errors import EXIT_TORPOR_FAILED, TorporError, UsageError
from torpor.locks import SUPERVISOR, TORPORD, HeldError, holder, sign
from torpor.locks import claim as lock

if TYPE_CHECKING:
    from torpor.cli.client import Server
    from torpor.settings import ServerSettings

URL_FILE = "run/api.url"
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 15.0
ABSENT = "absent"
UNIT = "torpord.service"
_TIME = re.compile(r"^[0-9]{4}-[0-9-]+T[0-9:]+Z ")
"""Before a line of the server's log."""


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
    for name in ("run", "logs"):
        (directory / name).mkdir(mode=0o700, exist_ok=True)
    with _claimed(directory) as claim:
        (directory / URL_FILE).unlink(missing_ok=True)
        commands = [_torpord(directory, settings), _proxy(directory, settings)]
        if foreground:
            sign(claim, os.getpid())
            return EXIT_TORPOR_FAILED if supervise(commands) else 0
        wanted = ["api", "proxy", *(["proxy-tls"] if settings.proxy.tls else [])]
        for line in _start(directory, commands, claim, wanted):
            click.echo(line)
    return 0


def _claimed(directory: Path) -> TextIO:
    """The lock of whoever starts the parts again. Raises TorporError if a server runs there."""
    try:
        claim = lock(directory / SUPERVISOR)
    except HeldError as held:
        raise _runs_already(directory, held.pid) from None
    # Without one: it was killed, or systemd is it.
    pid = holder(directory / TORPORD) or _proxy_pid(directory)
    if pid is not None:
        claim.close()
        raise _runs_already(directory, pid)
    return claim


def _runs_already(directory: Path, pid: int | None) -> TorporError:
    who = "" if pid is None else f" (process {pid})"
    return TorporError(f"a server runs already on {directory}{who}: `torpor down` ends it")


def _start(
    directory: Path, commands: list[list[str]], claim: TextIO, wanted: list[str]
) -> list[str]:
    """Starts a supervisor in the background: what its parts say. Raises TorporError."""
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
            pass_fds=[claim.fileno()],
            cwd="/",
        )
    try:
        sign(claim, process.pid)
        said = _await_urls(process, log_path, began, wanted)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it serves: to break this off is too late
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return said


def _torpord(directory: Path, settings: "ServerSettings") -> list[str]:
    server, proxy = settings.server, settings.proxy
    words = [str(find_binary("torpord")), "--data", str(directory)]
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
        has_ended = process.poll() is not None
        lines = log_path.read_bytes()[began:].decode(errors="replace").splitlines(keepends=True)
        whole = [_TIME.sub("", line.rstrip(), count=1) for line in lines if line.endswith("\n")]
        said = {line.partition(" ")[0]: line for line in whole}
        if all(name in said for name in wanted):
            return [said[name] for name in wanted]
        if has_ended:
            errors = [line for line in whole if line.startswith(("torpor: ", "torpor-proxy: "))]
            reason = errors[-1].partition(": ")[2] if errors else f"see {log_path}"
            raise TorporError(f"the server did not start: {reason}")
        time.sleep(0.02)
    raise TorporError(f"the server did not start within {START_TIMEOUT_S:.0f} s: see {log_path}")


@click.command()
@click.option("--now", is_flag=True, help="Do not put VMs into standby first: they run on.")
@click.option(
    "--vms-only", is_flag=True,
    help="Put VMs away and start no others, but end nothing: for the host's shutdown.",
)  # fmt: skip
@click.pass_obj
def down(data: str | None, now: bool, vms_only: bool) -> None:
    """Put stateful instances into standby, end the others, and end the server.

    What ran then goes on, or begins anew, with the next `torpor up`.
    """
    if now and vms_only:
        raise UsageError("--now leaves VMs alone, and --vms-only ends nothing else: give one")
    directory = data_dir(data)
    if process_of(directory) is None:
        raise TorporError(f"no server runs on {directory}")
    if not now:
        _put_away(data, directory)
    if vms_only:
        return
    told: set[int] = set()
    ends_s = time.monotonic() + END_TIMEOUT_S
    while (process := process_of(directory)) is not None:
        if time.monotonic() > ends_s:
            raise TorporError(f"process {process} does not end: its log is in {directory}/logs")
        # Without a supervisor each part is ended by itself.
        if process not in told:
            told.add(process)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        time.sleep(0.05)
    (directory / URL_FILE).unlink(missing_ok=True)


def _put_away(data: str | None, directory: Path) -> None:
    from torpor.cli.client import NotAnsweringError, run  # the SDK costs `up` more than all else

    async def work(server: "Server") -> int:
        answer = await server.own("POST", "/torpor/v1/quiesce")
        return int(answer["left_running"])

    try:
        left = run(data, work, here=True)
    except NotAnsweringError as error:
        raise TorporError(
            f"torpord does not answer, so no VM can be put away: see {directory}/logs; "
            "`torpor down --now` ends the server and leaves VMs to the next one"
        ) from error
    if left:
        say(left_running(left))


def left_running(vms: int) -> str:
    """What to know of VMs that were not put away."""
    if vms == 1:
        return "1 VM did not end in time and runs on: the next `torpor up` adopts it"
    return f"{vms} VMs did not end in time and run on: the next `torpor up` adopts them"


def process_of(directory: Path) -> int | None:
    """A process of the server that a data directory has: the first there is of the supervisor,
    which ends the others, torpord and the proxy.
    """
    return holder(directory / SUPERVISOR) or holder(directory / TORPORD) or _proxy_pid(directory)


def _proxy_pid(directory: Path) -> int | None:
    """The process that listens for torpord, or None."""
    try:
        run = os.open(directory / "run", os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(f"/proc/self/fd/{run}/proxy.sock")
        except OSError:
            return None
        finally:
            os.close(run)
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(peer[:4], "little")


def _supervisor(directory: Path) -> str:
    """Who starts the parts of a server again: that of `torpor up` runs, systemd does, or nobody."""
    if holder(directory / SUPERVISOR) is not None:
        return "running"
    groups = ""
    with contextlib.suppress(OSError):  # there is no torpord any more
        groups = Path(f"/proc/{holder(directory / TORPORD)}/cgroup").read_text()
    return "systemd" if is_unit(groups) else ABSENT


def is_unit(groups: str) -> bool:
    """Whether a process with these control groups (cgroups(7)) is torpord's systemd unit."""
    return any(Path(line).name == UNIT for line in groups.splitlines())


@click.command()
@output_option
@click.pass_obj
def status(data: str | None, format_: str) -> None:
    """Show how many there are of what, and how the server is."""

    from torpor.cli.client import run

    async def work(server: "Server") -> dict[str, Any]:
        health = await server.sdk.api.platform.node.healthz()
        own = await server.own("GET", "/torpor/v1/status")
        checks = {**health.data.checks, "proxy": own["proxy"]}
        if server.directory is not None:
            checks["supervisor"] = _supervisor(server.directory)
        return {"versions": health.data.versions, "checks": checks, "counts": own["counts"]}

    found = run(data, work)
    if found["checks"].get("supervisor") == ABSENT:
        say(
            "warning: nobody starts torpord or the proxy again when one of them fails: "
            "`torpor down --now` and `torpor up` mend that, and VMs run on"
        )
    if format_ != TABLE:
        show([found], format_, ())
        return
    click.echo(f"torpor {found['versions']['torpor']}")
    for name, health in found["checks"].items():
        click.echo(f"{name}: {health}")
    for kind, states in found["counts"].items():
        each = ", ".join(f"{number} {state}" for state, number in states.items() if number)
        click.echo(f"{kind}s: {each or 'none'}")

"""`torpor up`, `torpor down` and `torpor status`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from torpor.cli.client import URL_FILE, Server, run
from torpor.cli.output import FORMATS, output_option, say
from torpor.datadir import data_dir
from torpor.errors import TorporError

SUPERVISOR = "run/supervisor.pid"
START_TIMEOUT_S = 60.0


@click.command()
@click.option("--listen", default="127.0.0.1:7400", show_default=True, metavar="HOST:PORT")
@click.option("--lower-tier", type=click.Path(path_type=Path), help="A directory for cold blobs.")
@click.option("--domain-suffix", default="localhost", show_default=True)
@click.option("--foreground", is_flag=True, help="Serve in this process, until a signal.")
@click.pass_obj
def up(
    data: str | None, listen: str, lower_tier: Path | None, domain_suffix: str, foreground: bool
) -> None:
    """Start the server."""
    directory = data_dir(data)
    if foreground:
        from torpor.torpord import Settings, main

        main(Settings(directory, listen=listen, lower_tier=lower_tier, domain_suffix=domain_suffix))
        return
    words = [sys.executable, "-m", "torpor", "--data", str(directory), "up", "--foreground"]
    words += ["--listen", listen, "--domain-suffix", domain_suffix]
    if lower_tier is not None:
        words += ["--lower-tier", str(lower_tier)]
    (directory / "run").mkdir(mode=0o700, exist_ok=True)
    (directory / "logs").mkdir(mode=0o700, exist_ok=True)
    (directory / URL_FILE).unlink(missing_ok=True)
    log_path = directory / "logs" / "torpord.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "torpor.supervisor", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    (directory / SUPERVISOR).write_text(f"{process.pid}\n")
    _await_url(directory, process, log_path)
    click.echo(f"api {(directory / URL_FILE).read_text().strip()}")


def _await_url(directory: Path, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    """Until the server accepts; raises TorporError with what it said if it does not."""
    ends_s = time.monotonic() + START_TIMEOUT_S
    began = log_path.stat().st_size
    while time.monotonic() < ends_s:
        if (directory / URL_FILE).exists():
            return
        said = log_path.read_bytes()[began:].decode(errors="replace")
        if process.poll() is not None or "torpor: " in said:
            process.terminate()
            last = [line for line in said.splitlines() if line.startswith("torpor: ")]
            reason = last[-1].removeprefix("torpor: ") if last else f"see {log_path}"
            raise TorporError(f"the server did not start: {reason}")
        time.sleep(0.05)
    process.terminate()
    raise TorporError(f"the server did not start within {START_TIMEOUT_S:.0f} s: see {log_path}")


@click.command()
@click.option("--now", is_flag=True, help="Do not put VMs into standby first: they run on.")
@click.pass_obj
def down(data: str | None, now: bool) -> None:
    """Put stateful instances into standby, stop the others, and end the server."""
    directory = data_dir(data)
    pid = _running_pid(directory)
    if pid is None:
        raise TorporError(f"no server runs on {directory}")
    if not now:

        async def work(server: Server) -> int:
            answer = await server.own("POST", "/torpor/v1/quiesce")
            return int(answer["left_running"])

        left = run(data, work)
        if left:
            say(f"{left} VMs did not end in time and run on: the next `torpor up` adopts them")
    supervisor = _supervisor_of(directory, pid)
    os.kill(supervisor or pid, signal.SIGTERM)
    ends_s = time.monotonic() + 15
    while _running_pid(directory) is not None:
        if time.monotonic() > ends_s:
            raise TorporError(f"process {pid} does not end: its log is in {directory}/logs")
        time.sleep(0.05)
    (directory / SUPERVISOR).unlink(missing_ok=True)
    (directory / URL_FILE).unlink(missing_ok=True)


def _running_pid(directory: Path) -> int | None:
    """The process that holds the data directory, or None."""
    from torpor.torpord import holder

    return holder(directory)


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

    async def work(server: Server) -> dict[str, Any]:
        health = await server.sdk.api.platform.node.healthz()
        counts = (await server.own("GET", "/torpor/v1/status"))["counts"]
        return {"versions": health.data.versions, "checks": health.data.checks, "counts": counts}

    found = run(data, work)
    if format_ != FORMATS[0]:
        from torpor.cli.output import show

        show([found], format_, ())
        return
    click.echo(f"torpor {found['versions']['torpor']}")
    for name, health in found["checks"].items():
        click.echo(f"{name}: {health}")
    for kind, states in found["counts"].items():
        each = ", ".join(f"{number} {state}" for state, number in states.items() if number)
        click.echo(f"{kind}s: {each or 'none'}")

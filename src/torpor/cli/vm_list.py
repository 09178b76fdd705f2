"""`torpor vm list`: the named VMs that run without a daemon."""

from datetime import UTC, datetime
from typing import Any

import click

from torpor.cli.output import output_option, show
from torpor.datadir import chosen_data_dir
from torpor.vms.running import RunningVM, RunningVMs

_COLUMNS = (
    ("NAME", "name"),
    ("PID", "pid"),
    ("MEMORY", "memory"),
    ("PORTS", "ports"),
    ("GENERATION", "generation"),
    ("STARTED", "started"),
    ("COMMAND", "command"),
)


@click.command(name="list")
@output_option
@click.pass_obj
def vm_list(data: str | None, format_: str) -> None:
    """List the VMs of `torpor vm run --name` and `torpor vm restore` that run."""
    show([_about(vm) for vm in RunningVMs(chosen_data_dir(data))], format_, _COLUMNS)


def _about(vm: RunningVM) -> dict[str, Any]:
    started = datetime.fromtimestamp(vm.about["started"], UTC)
    return {"name": vm.name, **vm.about, "started": started}

"""All commands as click knows them. Command modules are imported when their command is used."""

import importlib
from typing import Any

import click

from torpor.cli.complete import image_names
from torpor.cli.vm_run import vm_run

_LAZY: dict[str, tuple[str, str]] = {
    "base-image": ("torpor.cli.base_image", "make base images from Debian, npm and PyPI packages"),
    "bench": ("torpor.cli.bench", "measure density, wakes, and other ways to run a program"),
    "branch": ("torpor.cli.checkpoint", "make an instance that goes on from another's state"),
    "build": ("torpor.cli.build", "build an image from a Dockerfile"),
    "checkpoint": ("torpor.cli.checkpoint", "saved states that instances can go on from"),
    "deploy": ("torpor.cli.deploy", "run a directory or an image behind a URL"),
    "down": ("torpor.cli.server", "end the server"),
    "image": ("torpor.cli.image", "list, fetch, export and remove images"),
    "instance": ("torpor.cli.instance", "make, start, stop and remove instances"),
    "node": ("torpor.cli.account", "show the machines of the server"),
    "quota": ("torpor.cli.account", "show and set quotas"),
    "service": ("torpor.cli.service", "host names and ports that lead to instances"),
    "status": ("torpor.cli.server", "show how many there are of what"),
    "store": ("torpor.cli.store", "check and back up what is on the disk"),
    "template": ("torpor.cli.template", "instances that others are cloned from"),
    "token": ("torpor.cli.account", "make and revoke API tokens"),
    "top": ("torpor.cli.top", "show what runs, wakes and sizes, live"),
    "units": ("torpor.cli.units", "write systemd units of the server"),
    "up": ("torpor.cli.server", "start the server"),
}
"""Top-level command: the module that defines it, and one line of help."""

_LAZY_VM: dict[str, tuple[str, str]] = {
    "inspect": ("torpor.cli.vm_inspect", "show what a snapshot file holds"),
    "list": ("torpor.cli.vm_list", "list the named VMs that run"),
    "restore": ("torpor.cli.vm_restore", "run a VM from a snapshot file"),
    "snapshot": ("torpor.cli.vm_snapshot", "store a named VM in a file"),
}


class _LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def __init__(
        self, *args: Any, lazy: dict[str, tuple[str, str]], prefix: str = "", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy
        self._prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self._lazy])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        name = self._prefix + cmd_name.replace("-", "_")
        command = getattr(importlib.import_module(self._lazy[cmd_name][0]), name)
        assert isinstance(command, click.Command)  # noqa: S101 -- a fact about our own table
        return command


@click.group(cls=_LazyGroup, lazy=_LAZY, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", metavar="DIR", help="Data directory (else TORPOR_DATA, else the default).")
@click.version_option(package_name="torpor")
@click.pass_context
def torpor(context: click.Context, data: str | None) -> None:
    """MicroVMs that cost nothing while nobody talks to them."""
    context.obj = data


@torpor.group(cls=_LazyGroup, lazy=_LAZY_VM, prefix="vm_")
def vm() -> None:
    """Run microVMs without a daemon."""


@vm.command(
    name="run",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED, shell_complete=image_names)
@click.pass_obj
def vm_run_command(data: str | None, args: tuple[str, ...]) -> int:
    """Run a program in a microVM in the foreground."""
    return vm_run([*(["--data", data] if data else []), *args])


def run(args: list[str]) -> int:
    """Run the command line `args`; the exit status."""
    try:
        result = torpor.main(args, prog_name="torpor", standalone_mode=False)
    except click.NoSuchOption as error:
        _placed(error).show()
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    return result if isinstance(result, int) else 0


def _placed(error: click.NoSuchOption) -> click.UsageError:
    """The error about an option that a command has not, but all commands together have."""
    common = next((each for each in torpor.params if error.option_name in each.opts), None)
    if common is None or error.ctx is None:
        return error
    written = f"{error.option_name} {common.metavar or ''}".rstrip()
    command = error.ctx.command_path.partition(" ")[2]
    return click.UsageError(
        f"option '{error.option_name}' goes before the command: torpor {written} {command} ...",
        error.ctx,
    )

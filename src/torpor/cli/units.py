"""`torpor units`: systemd units of the server, with the paths of this installation."""

from importlib.resources import files
from pathlib import Path

import click

from torpor.binaries import find_binary
from torpor.datadir import data_dir
from torpor.errors import UsageError
from torpor.settings import load_server_settings


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), default="/etc/systemd/system")
@click.pass_obj
def units(data: str | None, directory: Path) -> None:
    """Write systemd units into DIRECTORY (/etc/systemd/system)."""
    chosen = data_dir(data)
    proxy = load_server_settings(chosen).proxy
    values = {
        "@BIN@": str(find_binary("torpor-proxy").parent).replace("%", "%%"),
        "@DATA@": _quoted(str(chosen).replace("$", "$$")),
        "@PATH@": _quoted(str(chosen)),
        "@HTTP@": proxy.http,
        "@TLS@": f" --tls {proxy.tls}" if proxy.tls else "",
    }
    for unit in sorted(files("torpor").joinpath("systemd").iterdir(), key=lambda one: one.name):
        text = unit.read_text()
        for name, value in values.items():
            text = text.replace(name, value)
        (directory / unit.name).write_text(text)
        click.echo(directory / unit.name)
    click.echo("systemctl daemon-reload && systemctl enable --now torpord torpor-quiesce")


def _quoted(text: str) -> str:
    """One word of a unit, whatever spaces and percent signs it has. Raises UsageError."""
    if set(text) & set('"\\\n'):
        raise UsageError(f"the data directory {text} has a quotation mark or a backslash: move it")
    return '"' + text.replace("%", "%%") + '"'

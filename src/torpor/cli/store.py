"""`torpor store`: works on the data directory itself, also while torpord runs."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from torpor.cli.output import say
from torpor.datadir import data_dir
from torpor.errors import TorporError

if TYPE_CHECKING:
    from torpor.store.blobs import BlobFiles


lower_tier_option = click.option(
    "--lower-tier",
    type=click.Path(path_type=Path),
    help="As given to `torpor up`, if config.toml does not name it.",
)


@click.group()
def store() -> None:
    """Check and back up what is on the disk."""


@store.command()
@click.option("--repair", is_flag=True, help="Mend what can be; torpord must not be running.")
@lower_tier_option
@click.pass_obj
def check(data: str | None, repair: bool, lower_tier: Path | None) -> int:
    """Verify every checksum and reference. Exit status 1 if something is wrong."""
    from torpor.images import ImageStore
    from torpor.store.checking import check as find
    from torpor.torpord import exclusive

    directory, files = _store_of(data, lower_tier)
    with exclusive(directory) if repair else nullcontext():
        problems = list(find(directory / "torpor.db", files, repair=repair))
        problems += ImageStore(directory).check("torpord")
    for problem in problems:
        click.echo(problem)
    if not problems:
        say("the store is in order")
    return 1 if problems else 0


@store.command()
@click.argument("target", type=click.Path(path_type=Path))
@lower_tier_option
@click.pass_obj
def backup(data: str | None, target: Path, lower_tier: Path | None) -> None:
    """Copy everything that a restore needs to TARGET, a data directory itself."""
    from torpor.store.backup import backup as copy

    directory, files = _store_of(data, lower_tier)
    copy(directory, target, files)
    click.echo(f"{target}")


def _store_of(data: str | None, lower_tier: Path | None) -> tuple[Path, "BlobFiles"]:
    """The data directory, and its blobs with the lower tier that flag or config.toml name."""
    from torpor.settings import load_server_settings
    from torpor.store.blobs import BlobFiles

    directory = data_dir(data)
    if not (directory / "torpor.db").exists():
        raise TorporError(f"{directory} has no store: `torpor up` makes one")
    flag = None if lower_tier is None else str(lower_tier)
    named = load_server_settings(directory, server_lower_tier=flag).server.lower_tier
    return directory, BlobFiles(directory / "blobs", Path(named) if named else None)

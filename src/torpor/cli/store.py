"""`torpor store`: works on the data directory itself, also while torpord runs."""

from pathlib import Path

import click

from torpor.cli.output import say
from torpor.datadir import data_dir
from torpor.errors import TorporError


@click.group()
def store() -> None:
    """Check and back up what is on the disk."""


@store.command()
@click.option("--repair", is_flag=True, help="Mend what can be; torpord must not be running.")
@click.option("--lower-tier", type=click.Path(path_type=Path), help="As given to `torpor up`.")
@click.pass_obj
def check(data: str | None, repair: bool, lower_tier: Path | None) -> int:
    """Verify every checksum and reference. Exit status 1 if something is wrong."""
    from torpor.store.blobs import BlobFiles
    from torpor.store.checking import check as find
    from torpor.torpord import exclusive

    directory = data_dir(data)
    database = directory / "torpor.db"
    if not database.exists():
        raise TorporError(f"{directory} has no store: `torpor up` makes one")
    files = BlobFiles(directory / "blobs", lower_tier)
    if repair:
        with exclusive(directory):
            problems = list(find(database, files, repair=True))
    else:
        problems = list(find(database, files))
    for problem in problems:
        click.echo(problem)
    if not problems:
        say("the store is in order")
    return 1 if problems else 0


@store.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--lower-tier", type=click.Path(path_type=Path), help="As given to `torpor up`.")
@click.pass_obj
def backup(data: str | None, target: Path, lower_tier: Path | None) -> None:
    """Copy everything that a restore needs to TARGET, a data directory itself."""
    from torpor.store.backup import backup as copy
    from torpor.store.blobs import BlobFiles

    directory = data_dir(data)
    if not (directory / "torpor.db").exists():
        raise TorporError(f"{directory} has no store: `torpor up` makes one")
    copy(directory, target, BlobFiles(directory / "blobs", lower_tier))
    click.echo(f"{target}")

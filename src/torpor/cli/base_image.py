"""`torpor base-image`."""

import click

from torpor.cli.image import say, store_of
from torpor.images.bases import NAMES
from torpor.images.build import Builder
from torpor.images.settings import load_settings
from torpor.images.transports import ANONYMOUS


@click.command("base-image")
@click.argument("names", nargs=-1)
@click.option("--list", "list_", is_flag=True, help="Print the names that can be made.")
@click.pass_obj
def base_image(data: str | None, names: tuple[str, ...], list_: bool) -> None:
    """Make base images NAMES from Debian, npm and PyPI packages.

    `torpor build` does so by itself where no registry can be reached.
    """
    if list_:
        click.echo("\n".join(NAMES))
        return
    if not names:
        raise click.UsageError(f"name one or more of: {', '.join(NAMES)}")
    store = store_of(data)
    builder = Builder(store, load_settings(store.data_dir), ANONYMOUS, say)
    for name in names:
        click.echo(builder.make_base(name))

"""What a shell's completion offers beyond commands and options."""

from contextlib import suppress

import click

from torpor.errors import TorporError


def image_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of the store's images that begin with `incomplete`; none if there is no telling."""
    from torpor.datadir import chosen_data_dir
    from torpor.images import ImageStore

    with suppress(TorporError, OSError):
        store = ImageStore(chosen_data_dir(context.find_root().params.get("data")))
        tags = (tag for image in store.images() for tag in image.tags)
        return sorted(tag for tag in tags if tag.startswith(incomplete))
    return []

"""What a shell's completion offers beyond commands and options: names of what there is."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click

from torpor.errors import TorporError

OFFERED_MAX = 1000
"""Of a kind, the oldest ones."""

Completion = Callable[[click.Context, click.Parameter, str], list[str]]


def image_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of the store's images that begin with `incomplete`; none if there is no telling."""
    from torpor.datadir import chosen_data_dir
    from torpor.images import ImageStore

    with suppress(TorporError, OSError):
        store = ImageStore(chosen_data_dir(_data(context)))
        tags = (tag for image in store.images() for tag in image.tags)
        return sorted(tag for tag in tags if tag.startswith(incomplete))
    return []


def _names_of(kind: str) -> Completion:
    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        from torpor.cli.client import LISTS, Server, run

        path, key = LISTS[kind]

        async def work(server: Server) -> list[str]:
            answer = await server.own("GET", path, params={"count": OFFERED_MAX})
            return [each["name"] for each in answer[key] if each["name"].startswith(incomplete)]

        with suppress(TorporError, OSError):
            return sorted(run(_data(context), work))
        return []

    return complete


instance_names = _names_of("instance")
checkpoint_names = _names_of("checkpoint")
template_names = _names_of("template")
service_names = _names_of("service")


def references_to(names: Completion) -> Callable[[Any], Any]:
    """The argument of commands that deal with one or more objects."""
    return click.argument(
        "references", nargs=-1, required=True, metavar="NAME|UUID...", shell_complete=names
    )


def _data(context: click.Context) -> str | None:
    found = context.find_root().params.get("data")
    return found if isinstance(found, str) else None

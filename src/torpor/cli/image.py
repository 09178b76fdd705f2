"""`torpor image`: the store's images, and ways in and out."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from torpor.cli.complete import image_names
from torpor.cli.group import ObjectGroup
from torpor.cli.output import TABLE, output_option, show
from torpor.datadir import data_dir
from torpor.errors import UsageError
from torpor.images.buildah import remove_build_cache
from torpor.images.exporting import export_image, push
from torpor.images.importing import DOCKER_ARCHIVE, FORMATS, import_image, pull
from torpor.images.names import parse_reference
from torpor.images.records import StoredImage
from torpor.images.settings import load_settings
from torpor.images.store import ImageStore
from torpor.images.transports import Access
from torpor.vms.templates import TemplateStore

CREDENTIALS_VARIABLE = "TORPOR_REGISTRY_CREDENTIALS"


def store_of(data: str | None) -> ImageStore:
    """The store of the data directory that `--data` and the environment name."""
    return ImageStore(data_dir(data))


def say(text: str) -> None:
    """Progress, for a person: standard error, so that results can be piped."""
    click.echo(text, err=True)


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that speaks to registries."""
    for option in (
        click.option("--creds", metavar="USER[:PASSWORD]", help="Registry login; asks if short."),
        click.option(
            "--authfile", type=click.Path(path_type=Path), help="Default: docker's and podman's."
        ),
        click.option("--insecure", is_flag=True, help="Accept plain HTTP and any certificate."),
    ):
        command = option(command)
    return command


def make_access(creds: str | None, authfile: Path | None, insecure: bool) -> Access:
    """What the options above say; a password that is missing is asked for."""
    credentials = creds or os.environ.get(CREDENTIALS_VARIABLE, "")
    if credentials and ":" not in credentials:
        password = click.prompt(f"Password of {credentials}", hide_input=True, err=True)
        credentials = f"{credentials}:{password}"
    if authfile is not None and not authfile.is_file():
        raise UsageError(f"--authfile {authfile}: no such file")
    return Access(credentials, authfile, insecure)


@click.group(cls=ObjectGroup)
def image() -> None:
    """List, fetch, export and remove images."""


@image.command("list")
@output_option
@click.pass_obj
def list_command(data: str | None, format_: str) -> None:
    """List the images of the store; but for a table, with all that `inspect` shows."""
    images = store_of(data).images()
    if format_ != TABLE:
        show([_as_json(entry) for entry in images], format_, ())
        return
    headings = ("NAME", "DIGEST", "SIZE", "SHARED", "CREATED", "USED BY")
    rows = [
        dict(zip(headings, (name, *_facts(entry)), strict=True))
        for entry in images
        for name in entry.tags or ("<none>",)
    ]
    show(rows, TABLE, [(heading, heading) for heading in headings])


def _facts(entry: StoredImage) -> tuple[str, ...]:
    """What a table tells of an image besides a name."""
    used_by = [user for user in entry.users if not user.startswith("tag/")]
    if entry.running:
        used_by.append("running VM")
    digest = entry.digest.removeprefix("sha256:")[:12]
    sizes = (_megabytes(entry.size_bytes), _megabytes(entry.shared_bytes))
    return (digest, *sizes, entry.created[:19], ", ".join(used_by) or "-")


@image.command()
@click.argument("names", nargs=-1, required=True, shell_complete=image_names)
@click.pass_obj
def inspect(data: str | None, names: tuple[str, ...]) -> None:
    """Show all about images, as JSON."""
    store = store_of(data)
    click.echo(json.dumps([_as_json(store.inspect(name)) for name in names], indent=2))


@image.command()
@click.argument("name", shell_complete=image_names)
@click.argument("new_name")
@click.pass_obj
def tag(data: str | None, name: str, new_name: str) -> None:
    """Give image NAME another name NEW_NAME too."""
    store = store_of(data)
    store.tag(store.resolve(name).digest, parse_reference(new_name))


@image.command()
@click.argument("names", nargs=-1, required=True, shell_complete=image_names)
@click.option("--force", is_flag=True, help="Also what snapshots need; templates of it go too.")
@click.pass_obj
def rm(data: str | None, names: tuple[str, ...], force: bool) -> None:
    """Remove names of images, and images without a name that nothing uses.

    A digest removes an image's names all at once. What a VM or a snapshot uses stays until that
    is gone and `prune` comes by.
    """
    store = store_of(data)
    for name in names:
        digest = store.resolve(name).digest
        if force:
            for template in TemplateStore(store.data_dir).drop_of_image(digest):
                click.echo(f"deleted template {template}")
            for kind in ("snapshot", "template"):
                store.release_all(kind, digest)
        untagged, deleted = store.remove(name)
        for removed in untagged:
            click.echo(f"untagged {removed}")
        for removed in deleted:
            click.echo(f"deleted {removed}")
        if not deleted:
            kept = store.inspect(digest)
            users = [*kept.users, *(["a running VM"] if kept.running else [])]
            say(f"{digest} stays: used by {', '.join(users)}")


@image.command()
@click.option("-a", "--all", "tagged", is_flag=True, help="Also images that only have a name.")
@click.option("--build-cache", is_flag=True, help="Also the cache of `torpor build`.")
@click.pass_obj
def prune(data: str | None, tagged: bool, build_cache: bool) -> None:
    """Delete images that nothing refers to: no name, no snapshot, no running VM."""
    store = store_of(data)
    deleted, freed_bytes = store.prune(tagged=tagged)
    for digest in deleted:
        click.echo(f"deleted {digest}")
    if build_cache:
        freed_bytes += remove_build_cache(store.data_dir)
    click.echo(f"freed {_megabytes(freed_bytes)}")


@image.command("pull")
@click.argument("names", nargs=-1, required=True)
@access_options
@click.pass_obj
def pull_command(
    data: str | None,
    names: tuple[str, ...],
    creds: str | None,
    authfile: Path | None,
    insecure: bool,
) -> None:
    """Fetch images for linux/amd64 from their registries, by tag or digest."""
    store = store_of(data)
    settings = load_settings(store.data_dir)
    access = make_access(creds, authfile, insecure)
    for name in names:
        click.echo(pull(store, parse_reference(name), settings, access, say))


@image.command("push")
@click.argument("name", shell_complete=image_names)
@click.argument("target", required=False)
@access_options
@click.pass_obj
def push_command(
    data: str | None,
    name: str,
    target: str | None,
    creds: str | None,
    authfile: Path | None,
    insecure: bool,
) -> None:
    """Send image NAME to the registry that NAME, or TARGET if given, names."""
    store = store_of(data)
    push(
        store,
        store.resolve(name),
        parse_reference(target or name),
        load_settings(store.data_dir),
        make_access(creds, authfile, insecure),
        say,
    )


@image.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("name", required=False)
@click.option("--format", "format_", type=click.Choice(FORMATS), help="Default: looks into it.")
@click.option("--image", "inner", default="", help="Which image, where the archive has several.")
@click.pass_obj
def import_command(
    data: str | None, source: Path, name: str | None, format_: str | None, inner: str
) -> None:
    """Import SOURCE, called NAME from now on.

    An OCI layout (directory or tar), a tar of `docker save`, or the tar of a root file system.
    """
    store = store_of(data)
    tag_ = parse_reference(name) if name else None
    settings = load_settings(store.data_dir)
    click.echo(import_image(store, source, format_ or "", inner, tag_, settings, say))


@image.command("export")
@click.argument("name", shell_complete=image_names)
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", type=click.Choice(FORMATS), default=DOCKER_ARCHIVE, show_default=True
)
@click.pass_obj
def export_command(data: str | None, name: str, target: Path, format_: str) -> None:
    """Write image NAME to TARGET."""
    store = store_of(data)
    stored = store.inspect(name)
    reference = parse_reference(stored.tags[0]) if stored.tags else None
    settings = load_settings(store.data_dir)
    export_image(store, store.resolve(name), target, format_, reference, settings, say)


def _as_json(stored: StoredImage) -> dict[str, Any]:
    return {
        "digest": stored.digest,
        "names": list(stored.tags),
        "created": stored.created,
        "rootfs_digest": stored.rootfs_digest,
        "size_bytes": stored.size_bytes,
        "shared_bytes": stored.shared_bytes,
        "files_bytes": stored.files_bytes,
        "inodes": stored.inodes,
        "sources": list(stored.sources),
        "used_by": [user for user in stored.users if not user.startswith("tag/")],
        "running": stored.running,
        "config": stored.config.to_oci(),
    }


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes else "-"

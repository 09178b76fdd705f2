"""Images from elsewhere into the store: registries, OCI layouts, docker archives, plain tars."""

from collections.abc import Callable
from pathlib import Path

from torpor.images.config import ImageConfig
from torpor.images.convert import Layer, convert, full_disk_explained
from torpor.images.erofs import is_erofs
from torpor.images.errors import BadArchiveError, ImageError
from torpor.images.limits import Budget
from torpor.images.names import Reference
from torpor.images.oci import read_dir_image
from torpor.images.settings import ImageSettings
from torpor.images.store import ImageStore
from torpor.images.streams import BudgetReader, decompressed
from torpor.images.tar import TarReader
from torpor.images.tools import require_root
from torpor.images.transports import Access, Skopeo

OCI_LAYOUT, DOCKER_ARCHIVE, OCI_ARCHIVE, ROOTFS = "oci", "docker-archive", "oci-archive", "rootfs"
FORMATS = (OCI_LAYOUT, OCI_ARCHIVE, DOCKER_ARCHIVE, ROOTFS)
_MAX_ENTRIES_TO_GUESS = 10_000

Progress = Callable[[str], None]


def pull(
    store: ImageStore,
    reference: Reference,
    settings: ImageSettings,
    access: Access,
    progress: Progress,
) -> str:
    """Fetches an image from its registry, tags it with its name and returns its digest."""
    require_root("pulling an image")
    progress(f"pulling {reference.canonical}")
    with store.staging() as staging, full_disk_explained(store.data_dir):
        directory = staging / "image"
        Skopeo(staging, settings, access).fetch(reference, f"dir:{directory}", staging)
        return add_dir_image(store, staging, directory, reference, settings, progress)


def import_image(
    store: ImageStore,
    source: Path,
    format_: str,
    image: str,
    tag: Reference | None,
    settings: ImageSettings,
    progress: Progress,
) -> str:
    """Imports an archive or layout and returns the image's digest.

    `format_` is one of FORMATS, or empty to look; `image` picks one of several in an archive.
    """
    require_root("importing an image")
    if not source.exists():
        raise ImageError(f"{source}: no such file or directory")
    origin = source.name
    format_ = format_ or guess_format(source, settings)
    with store.staging() as staging, full_disk_explained(store.data_dir):
        if format_ == ROOTFS:
            if source.is_dir():
                raise ImageError(
                    f"{source}: a directory; `torpor vm run {source}` runs it as it is"
                )
            return convert(
                store,
                staging,
                [Layer(source, origin, whiteouts=False)],
                ImageConfig(),
                limits=settings.limits,
                tag=tag,
                progress=progress,
            )
        directory = staging / "image"
        location = source.absolute()
        if ":" in str(location):
            # A colon would be taken for the start of an image name.
            location = staging / "source"
            location.symlink_to(source.absolute())
        name = f"{format_}:{location}" + (f":{image}" if image else "")
        Skopeo(staging, settings).convert(name, f"dir:{directory}", origin, staging)
        return add_dir_image(store, staging, directory, tag, settings, progress, origin)


def add_dir_image(
    store: ImageStore,
    staging: Path,
    directory: Path,
    tag: Reference | None,
    settings: ImageSettings,
    progress: Progress,
    origin: str = "",
    sources: tuple[str, ...] = (),
) -> str:
    """Adds an image in `dir:` format, which is converted only if the store has none made of it."""
    origin = origin or (tag.familiar if tag is not None else directory.name)
    image = read_dir_image(directory, origin, settings.limits)
    # Named by the diff_ids in it, the configuration stands for the layers' content too.
    source = f"config:{image.config_digest}"
    known = store.find_source(source)
    sources = (source, *sources)
    if tag is not None:
        sources = (*sources, f"{tag.registry}/{tag.path}@{image.manifest_digest}")
        if tag.digest:
            # A multi-platform index has another digest than the manifest it led to.
            sources, tag = (*sources, tag.canonical), None
    if known is not None:
        progress("already in the store")
        store.note(known, sources, tag)
        return known
    return convert(
        store,
        staging,
        image.layers,
        image.config,
        limits=settings.limits,
        sources=sources,
        tag=tag,
        progress=progress,
    )


def _as_path(source: Path) -> str:
    """As `torpor vm run` takes it for a path."""
    text = str(source)
    return text if "/" in text or text.startswith(".") else f"./{text}"


def guess_format(source: Path, settings: ImageSettings) -> str:
    """What an archive or directory is, by what it holds. Raises BadArchiveError for no archive."""
    if source.is_dir():
        if (source / "oci-layout").exists():
            return OCI_LAYOUT
        return ROOTFS
    found: set[bytes] = set()
    with source.open("rb") as file:
        if is_erofs(file):
            raise BadArchiveError(
                f"{source}: an EROFS image, no archive; `torpor vm run {_as_path(source)}` runs it "
                "as it is, and a tar of its files can be imported"
            )
        budget = Budget(settings.limits)
        content = BudgetReader(decompressed(file, source.name), budget, source.name)
        try:
            for number, entry in enumerate(TarReader(content, budget, source.name)):
                found.add(b"/".join(entry.path[:1]))
                if number > _MAX_ENTRIES_TO_GUESS:
                    break
                if {b"manifest.json", b"oci-layout"} & found:
                    break
        except BadArchiveError:
            if not found:
                raise
            return ROOTFS
    if not found:
        # Images of disks and file systems begin with zeros too, by which a tar ends.
        raise BadArchiveError(f"{source}: no archive, or one without files")
    # `docker save` writes both since version 25, where its manifest.json is the richer one.
    if b"oci-layout" in found and b"manifest.json" not in found:
        return OCI_ARCHIVE
    return DOCKER_ARCHIVE if b"manifest.json" in found else ROOTFS

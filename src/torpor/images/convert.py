"""From layers to an image in the store: flatten, mkfs.erofs, add."""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torpor.erofs import make_erofs
from torpor.errors import PackError
from torpor.images.config import ImageConfig
from torpor.images.errors import BadArchiveError, ImageError
from torpor.images.limits import Budget, Limits
from torpor.images.names import Reference
from torpor.images.records import NewImage
from torpor.images.store import ImageStore
from torpor.images.streams import BudgetReader, HashingReader, decompressed
from torpor.images.tar import TarReader
from torpor.images.tools import require_root
from torpor.images.tree import Tree, TreeSummary

BUILD_MOUNT = "/run/torpor-build"
"""Where a build's RUN steps find the user's configuration; never part of an image."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer on disk. Digests are checked where they are known; both are `sha256:` digests."""

    path: Path
    origin: str
    digest: str = ""
    """Of the file as it is, compressed."""
    diff_id: str = ""
    """Of its content, decompressed."""
    whiteouts: bool = True


@contextmanager
def full_disk_explained(directory: Path) -> Iterator[None]:
    """Turns the errors of a full disk or quota into an ImageError that says where it is full."""
    remedy = (
        f"{directory}: no room left on this disk; free some, or collect images with "
        "`torpor image prune` and the build cache with `torpor image prune --build-cache`"
    )
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ImageError(remedy) from error
        raise
    except PackError as error:
        # mkfs.erofs says that it could not write, not why.
        if shutil.disk_usage(directory).free < 1 << 20:
            raise ImageError(remedy) from error
        raise


def convert(
    store: ImageStore,
    staging: Path,
    layers: Iterable[Layer],
    config: ImageConfig,
    *,
    limits: Limits,
    sources: tuple[str, ...] = (),
    tag: Reference | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> str:
    """Makes an image of layers, lowest first, adds it to the store and returns its digest.

    Works in `staging`, a directory that `store.staging()` gave. Each layer's file is read once.
    """
    require_root("making an image")
    with full_disk_explained(store.data_dir):
        tree, summary = flatten(staging, layers, limits, progress)
        progress(f"writing EROFS image of {summary.inodes:,} inodes")
        image = staging / "image.erofs"
        make_erofs(tree, image)
        return store.add(NewImage(image, config, summary.files_bytes, summary.inodes, sources), tag)


def flatten(
    staging: Path,
    layers: Iterable[Layer],
    limits: Limits,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Path, TreeSummary]:
    """Applies layers and writes the merged tree out below `staging`; returns where."""
    spool = staging / "spool"
    spool.mkdir()
    budget = Budget(limits)
    tree = Tree(spool, budget)
    for number, layer in enumerate(layers):
        if number >= limits.max_layers:
            raise BadArchiveError(f"{layer.origin}: more than {limits.max_layers} layers")
        progress(f"flattening {layer.origin}")
        _apply_layer(tree, layer, number, budget)
    tree.drop_if_empty(*os.fsencode(BUILD_MOUNT).strip(b"/").split(b"/"))
    directory = staging / "rootfs"
    return directory, tree.write_out(directory)


def _apply_layer(tree: Tree, layer: Layer, number: int, budget: Budget) -> None:
    with layer.path.open("rb") as file:
        # Hashing takes as long as all the rest: only what there is something to compare with.
        stored_plain = layer.digest == layer.diff_id
        compressed = HashingReader(file, hashing=bool(layer.digest))
        content = HashingReader(
            BudgetReader(decompressed(compressed, layer.origin), budget, layer.origin),
            hashing=bool(layer.diff_id) and not stored_plain,
        )
        reader = TarReader(content, budget, layer.origin)
        try:
            for entry in reader:
                tree.apply(entry, reader.data(), number, layer.origin, whiteouts=layer.whiteouts)
            content.drain()
            compressed.drain()
        except BadArchiveError:
            # A damaged file is better told by its digest than by where it stopped making sense.
            compressed.drain()
            _check_digest(compressed.digest, layer.digest, layer.origin)
            raise
        _check_digest(compressed.digest, layer.digest, layer.origin)
        if not stored_plain:
            _check_digest(content.digest, layer.diff_id, f"{layer.origin}, decompressed")


def _check_digest(actual: str, expected: str, origin: str) -> None:
    if expected and actual != expected:
        raise BadArchiveError(f"{origin}: its digest is {actual}, not {expected}")

"""A copy of everything that a restore needs, taken while torpord runs."""

import os
import shutil
from pathlib import Path
from typing import Any

import apsw

from torpor.store.blobs import BlobFiles
from torpor.store.errors import StoreError

_DIRECTORIES = ("images", "templates")
_FILES = ("snapshot.key", "token", "config.toml")
_TEMPORARY = {"staging", "lock"}


def backup(data_dir: Path, target: Path, files: BlobFiles) -> None:
    """Writes the data directory as it is at one moment to `target`, which must not exist.

    The result is a data directory itself; a lower tier's blobs are in its upper tier. Blobs that
    are replaced meanwhile stay until the copy is done.
    """
    if target.exists():
        raise StoreError(f"{target} exists: name a directory that does not")
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700, parents=True)
    try:
        # Held before the rows are read, so that the file of every row read stays.
        with files.hold():
            _copy_database(data_dir / "torpor.db", unfinished / "torpor.db", files, unfinished)
        for name in _DIRECTORIES:
            if (data_dir / name).is_dir():
                shutil.copytree(
                    data_dir / name,
                    unfinished / name,
                    ignore=lambda _, names: _TEMPORARY.intersection(names),
                )
        for name in _FILES:
            if (data_dir / name).exists():
                shutil.copy2(data_dir / name, unfinished / name)
        _sync_tree(unfinished)
        unfinished.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _copy_database(source: Path, copy: Path, files: BlobFiles, target: Path) -> None:
    original = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READONLY)
    result = apsw.Connection(str(copy))
    try:
        with result.backup("main", original, "main") as progress:
            progress.step()
        result.pragma("journal_mode", "delete")
        blobs = BlobFiles(target / "blobs")
        rows: list[Any] = result.execute("SELECT digest, tier FROM blobs").fetchall()
        for digest, tier in rows:
            path = blobs.path(digest)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            shutil.copy2(files.path(digest, tier), path)
        result.execute("UPDATE blobs SET tier = 'upper'")
    finally:
        result.close()
        original.close()


def _sync_tree(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            _sync(Path(directory) / name)
        _sync(Path(directory))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

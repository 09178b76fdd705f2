"""A process that is killed at any point of an operation, and what the next one finds."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.images.archives import Member, directory, tar
from tests.images.conftest import AddTar, listing
from torpor.errors import ImageNotFoundError
from torpor.images.exporting import export_image
from torpor.images.importing import import_image
from torpor.images.names import parse_reference
from torpor.images.settings import ImageSettings
from torpor.images.store import ImageStore

CHANGES = frozenset(
    ("os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "os.chmod")
)
"""Audit events before which a process is killed, beside the opening of a file for writing."""
SETTINGS = ImageSettings()


def quiet(_: str) -> None:
    pass


def killed_before_change(number: int, operation: Callable[[], object]) -> bool:
    """Runs `operation` in a child that SIGKILLs itself before its change of that number.

    False if it came to its end before.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            writes = (
                event == "open"
                and isinstance(arguments[2], int)
                and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if writes or event in CHANGES:
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            operation()
        except BaseException:  # it must not get back into the test runner
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the operation failed by itself"
    return status == signal.SIGKILL


def every_point(operation: Callable[[], object]) -> Iterator[int]:
    """Yields after each kill; ends when the operation did."""
    number = 0
    while killed_before_change(number + 1, operation):
        number += 1
        yield number


def leftovers(store: ImageStore) -> list[str]:
    """What lies in the store beside images, references and the lock."""
    staging = store.directory / "staging"
    found = [f"staging/{path.name}" for path in staging.glob("*")]
    for path in store.directory.glob("*"):
        is_image = path.suffix in (".json", ".erofs") and path.with_suffix(".json").exists()
        if not is_image and path.name not in ("lock", "refs", "staging"):
            found.append(path.name)
    return found


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs.tar"
    path.write_bytes(tar([directory("d"), Member("d/new", b"new")]))
    return path


def test_import_killed_anywhere(store: ImageStore, add_layers: AddTar, archive: Path) -> None:
    old = add_layers(tar([Member("old", b"old")]), tag="app")
    tag = parse_reference("app")

    def again() -> str:
        return import_image(store, archive, "rootfs", "", tag, SETTINGS, quiet)

    store.tag(old, parse_reference("kept"))
    points = 0
    for _ in every_point(again):
        points += 1
        found = store.resolve("app").digest
        expected = {"old": b"old"} if found == old else {"d": b"/", "d/new": b"new"}
        assert listing(store, "app") == expected
        new = again()
        assert listing(store, "app") == {"d": b"/", "d/new": b"new"}
        store.tag(old, tag)
        assert store.prune()[0] == [new]
        assert leftovers(store) == []
    assert points > 10


def test_removal_killed_anywhere(store: ImageStore, add_layers: AddTar) -> None:
    layer = tar([Member("file", b"content")])
    digest = add_layers(layer, tag="app")
    for _ in every_point(lambda: store.remove(digest)):
        # Either it is there as a whole or its name leads nowhere.
        for name in ("app", digest):
            try:
                assert listing(store, name) == {"file": b"content"}
            except (ImageNotFoundError, FileNotFoundError):
                assert store.find("app") is None
        store.prune()
        assert leftovers(store) == []
        assert add_layers(layer, tag="app") == digest
        assert listing(store, "app") == {"file": b"content"}


def test_export_killed_anywhere(store: ImageStore, add_layers: AddTar, tmp_path: Path) -> None:
    add_layers(tar([Member("file", b"content")]), tag="app")
    target = tmp_path / "out" / "app.tar"
    target.parent.mkdir()
    for format_ in ("rootfs", "oci"):

        def export(format_: str = format_) -> None:
            export_image(store, store.resolve("app"), target, format_, None, SETTINGS, quiet)

        for _ in every_point(export):
            remove(target)  # where it was killed behind the last step that counts
            export()
            assert [path.name for path in target.parent.iterdir()] == [target.name]
            remove(target)
        remove(target)
    with store.staging():
        pass
    assert leftovers(store) == []

"""What the image tests share: stores, and a small base image made without any package."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import REPOSITORY
from torpor.images.config import ImageConfig
from torpor.images.convert import Layer, convert
from torpor.images.erofs import ErofsReader
from torpor.images.limits import Limits
from torpor.images.names import parse_reference
from torpor.images.store import ImageStore

AddTar = Callable[..., str]


@pytest.fixture(scope="session", autouse=True)
def _packages() -> None:
    subprocess.run([REPOSITORY / "scripts" / "system-packages", "build", "test"], check=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    """An empty store, of which nothing half-made may be left at the end."""
    store = ImageStore(tmp_path / "data")
    yield store
    staging = store.directory / "staging"
    assert not staging.exists() or not list(staging.iterdir())
    assert not list(store.directory.glob("new-*"))


@pytest.fixture
def add_layers(store: ImageStore, tmp_path: Path) -> AddTar:
    """Adds an image of the given tar layers and returns its digest."""

    def add(
        *layers: bytes,
        tag: str = "",
        config: ImageConfig = ImageConfig(),  # noqa: B008 -- immutable
        limits: Limits = Limits(),  # noqa: B008 -- immutable
        whiteouts: bool = True,
    ) -> str:
        files = []
        for number, content in enumerate(layers, 1):
            path = tmp_path / f"layer-{number}"
            path.write_bytes(content)
            files.append(Layer(path, f"layer {number}", whiteouts=whiteouts))
        with store.staging() as staging:
            reference = parse_reference(tag) if tag else None
            return convert(store, staging, files, config, limits=limits, tag=reference)

    return add


def listing(store: ImageStore, name: str) -> dict[str, bytes]:
    """Every path of an image with its content; a directory's is b"/"."""
    found = {}
    with ErofsReader(store.resolve(name).erofs) as reader:
        for path, inode in reader.walk():
            is_directory = inode.mode & 0o170000 == 0o040000
            content = b"/" if is_directory else b"".join(reader.data(inode))
            found[b"/".join(path).decode("utf-8", "surrogateescape")] = content
    found.pop("")
    return found

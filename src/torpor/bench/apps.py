"""Applications that benchmarks run, as images of a server's data directory."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torpor.errors import TorporError
from torpor.images import ImageStore, ResolvedImage
from torpor.images.build import Builder, BuildOptions
from torpor.images.config import the_port
from torpor.images.exporting import export_image
from torpor.images.importing import DOCKER_ARCHIVE, import_image
from torpor.images.names import Reference, parse_reference
from torpor.images.settings import load_settings
from torpor.images.transports import ANONYMOUS

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class App:
    """An application in some image store."""

    name: str
    image: ResolvedImage

    @property
    def port(self) -> int:
        """Where it listens: the port that its image exposes. Raises UsageError."""
        return the_port(self.image.config, self.name, "its Dockerfile must EXPOSE one")


def build(data_dir: Path, source: str, say: Say) -> App:
    """The application of a directory with a Dockerfile, or of an image that is there."""
    directory = Path(source)
    if directory.is_dir():
        builder = Builder(ImageStore(data_dir), load_settings(data_dir), ANONYMOUS, say)
        builder.build(BuildOptions(directory=directory, tags=(_tag(directory),)))
    return find(data_dir, source)


def find(data_dir: Path, source: str) -> App:
    """The application that `build` made of this. Raises TorporError if it did not."""
    directory = Path(source)
    name = _tag(directory).familiar if directory.is_dir() else source
    return App(name, ImageStore(data_dir).resolve(name))


def _tag(directory: Path) -> Reference:
    return parse_reference(f"{directory.resolve().name.lower()}:latest")


def put(app: App, from_dir: Path, into_dir: Path, say: Say) -> str:
    """Copies an application's image into another data directory; its digest there."""
    source, target = ImageStore(from_dir), ImageStore(into_dir)
    if (there := target.find(app.name)) is not None:
        return there
    settings = load_settings(into_dir)
    into_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into_dir) as scratch:
        archive = Path(scratch) / "image.tar"
        tag = parse_reference(app.name)
        with source.held(app.image):
            export_image(source, app.image, archive, DOCKER_ARCHIVE, tag, settings, say)
        return import_image(target, archive, DOCKER_ARCHIVE, "", tag, settings, say)


def example(name: str) -> str:
    """Directory of a sample application, from the repository's root. Raises TorporError."""
    directory = Path("examples") / name
    if not directory.is_dir():
        raise TorporError(
            f"{directory} is not here: run this in the repository, or name one with --app"
        )
    return str(directory)

"""Applications that benchmarks run, as images of a server's data directory."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torpor.errors import TorporError, UsageError
from torpor.images import ImageStore, ResolvedImage
from torpor.images.build import Builder, BuildOptions
from torpor.images.exporting import export_image
from torpor.images.importing import DOCKER_ARCHIVE, import_image
from torpor.images.names import parse_reference
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
        """Where it listens: the first port that its image exposes. Raises UsageError."""
        for exposed in self.image.config.exposed_ports:
            number, _, protocol = exposed.partition("/")
            if protocol in ("", "tcp"):
                return int(number)
        raise UsageError(f"{self.name} exposes no TCP port: add EXPOSE to its Dockerfile")


def build(data_dir: Path, source: str, say: Say) -> App:
    """The application of a directory with a Dockerfile, or of an image that is there."""
    store = ImageStore(data_dir)
    directory = Path(source)
    if not directory.is_dir():
        return App(source, store.resolve(source))
    tag = parse_reference(f"{directory.resolve().name.lower()}:latest")
    builder = Builder(store, load_settings(data_dir), ANONYMOUS, say)
    digest = builder.build(BuildOptions(directory=directory, tags=(tag,)))
    return App(tag.familiar, store.resolve(digest))


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

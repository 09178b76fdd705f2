"""Templates of a data directory: digest-named files, their descriptions, and who uses them."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from torpor.durable import write_durably
from torpor.errors import TorporError
from torpor.store import Content


@dataclass(frozen=True, slots=True)
class StoredTemplate:
    """What is said of a template beside its file."""

    digest: str
    owner: str
    image: str
    """Digest of the image."""
    size_bytes: int


class TemplateStore:
    """Instances are cheap; processes share by file locks."""

    def __init__(self, data_dir: Path) -> None:
        self.directory = data_dir / "templates"

    def add(self, content: bytes, *, owner: str, image: str, user: tuple[str, str]) -> str:
        """Store a template, used by `user` (kind and name); returns its digest."""
        digest = f"sha256:{Content(content).digest.hex()}"
        about = StoredTemplate(digest, owner, image, len(content))
        with self._locked():
            if not self._path(digest).exists():
                write_durably(self._path(digest), content)
            write_durably(self._about(digest), json.dumps(asdict(about), indent=1).encode())
            self._refer(digest, user)
        return digest

    def read(self, digest: str, *, owner: str) -> bytes:
        """A template's file, checked against its digest. Raises TorporError."""
        try:
            about = StoredTemplate(**json.loads(self._about(digest).read_bytes()))
            content = self._path(digest).read_bytes()
        except FileNotFoundError:
            raise TorporError(
                f"template {digest}: not in {self.directory}: take a snapshot made with "
                "--with-template"
            ) from None
        except (ValueError, TypeError):
            raise TorporError(f"template {digest}: {self._about(digest)} is damaged") from None
        if about.owner != owner:
            raise TorporError(f"template {digest}: belongs to {about.owner}, and you are {owner}")
        if not Content(content, bytes.fromhex(digest.removeprefix("sha256:"))).is_whole():
            raise TorporError(
                f"template {digest}: {self._path(digest)} is damaged (its content does not match "
                "its name): take a snapshot made with --with-template"
            )
        return content

    def refer(self, digest: str, user: tuple[str, str]) -> None:
        """Note a user of a template. Raises TorporError if it is not there."""
        with self._locked():
            if not self._path(digest).exists():
                raise TorporError(f"template {digest}: not in {self.directory}")
            self._refer(digest, user)

    def drop_of_image(self, image: str) -> list[str]:
        """Delete the templates of an image with all references to them; their digests."""
        with self._locked():
            dropped = [about.digest for about in self._all() if about.image == image]
            for path in (self.directory / "refs").glob("*/*"):
                if path.read_text().strip() in dropped:
                    path.unlink()
            for digest in dropped:
                self._path(digest).unlink(missing_ok=True)
                self._about(digest).unlink(missing_ok=True)
        return dropped

    def _all(self) -> Iterator[StoredTemplate]:
        for path in sorted(self.directory.glob("sha256-*.json")):
            yield StoredTemplate(**json.loads(path.read_bytes()))

    def _refer(self, digest: str, user: tuple[str, str]) -> None:
        kind, name = user
        path = self.directory / "refs" / kind / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(path, f"{digest}\n".encode())

    def _path(self, digest: str) -> Path:
        return self.directory / digest.replace(":", "-")

    def _about(self, digest: str) -> Path:
        return self.directory / f"{digest.replace(':', '-')}.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.directory / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in self.directory.glob(".new-*"):
                leftover.unlink(missing_ok=True)
            yield

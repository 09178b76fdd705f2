"""Large snapshots as files that are named by their digests (torpor.snapshot_format).

    blobs/HH/HEX          the upper tier, HH being the first byte of HEX
    LOWER/HH/HEX          the lower tier, a directory on a slower disk
    blobs/staging/RANDOM  a file that is being written; swept at start
    blobs/lock            flock: shared by a backup, exclusive while files are removed
    blobs/identity, LOWER/belongs-to   the same random name: it has this data directory alone

Order: content, fsync, rename, fsync of the directory, and only then the row that refers to it; in
the other direction the row goes first. So a row always has its file, and a file without a row is
rubbish that the next sweep removes.
"""

import fcntl
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torpor.durable import write_durably
from torpor.store.content import Content
from torpor.store.disk import Disk, failure
from torpor.store.errors import MissingError, StoreError

UPPER = "upper"
LOWER = "lower"


class BlobFiles:
    """The files of one data directory. Methods block; call them outside the event loop."""

    def __init__(
        self, directory: Path, lower: Path | None = None, disk: Disk | None = None
    ) -> None:
        self.directory = directory
        self.lower = lower
        self._disk = disk or Disk()
        self._writing: Counter[bytes] = Counter()
        for root in (directory, lower):
            if root is not None:
                self._disk.make_directory(root)
                self._disk.make_directory(root / "staging")
                # An earlier process may have died between a mkdir and its fsync.
                self._disk.sync_directory(root)

    def claim_lower(self) -> None:
        """Makes the lower tier this data directory's. Raises StoreError if it is another's.

        What one data directory does not know of is rubbish to it: two must not have the same.
        """
        if self.lower is None:
            return
        identity, owner = self.directory / "identity", self.lower / "belongs-to"
        if not identity.exists():
            write_durably(identity, secrets.token_hex(16).encode())
        if not owner.exists():
            write_durably(owner, identity.read_bytes())
        if owner.read_bytes() != identity.read_bytes():
            raise StoreError(
                f"the lower tier {self.lower} belongs to another data directory: name another one"
            )

    def path(self, digest: bytes, tier: str = UPPER) -> Path:
        """Where a blob's file is, whether or not it exists."""
        return self._root(tier) / digest.hex()[:2] / digest.hex()

    @contextmanager
    def put(self, content: Content, tier: str = UPPER) -> Iterator[None]:
        """Makes `content` durable as a file under its digest.

        Until the `with` block ends the file is safe from `remove`, even before any row refers to
        it: commit the row inside the block. Raises NoSpaceError.
        """
        digest = content.digest
        self._writing[digest] += 1
        try:
            target = self.path(digest, tier)
            try:
                if not target.exists():
                    self._disk.make_directory(target.parent)
                    staged = self._root(tier) / "staging" / secrets.token_hex(16)
                    self._disk.write_new(staged, content)
                    self._disk.rename(staged, target)
                # Also when it was there: whoever made it may not have come as far as this.
                self._disk.sync_directory(target.parent)
            except OSError as error:
                raise failure(error) from error
            yield
        finally:
            self._writing[digest] -= 1
            if not self._writing[digest]:
                del self._writing[digest]

    def open(self, digest: bytes, tier: str) -> Content:
        """A blob's content, not checked yet. Raises MissingError.

        `tier` is where it was when its row was read; it may have been moved since.
        """
        for place in sorted(self.tiers(), key=lambda one: one != tier):
            with suppress(FileNotFoundError):
                return Content.opened(self.path(digest, place), digest)
        self._root(tier)  # raises if there is no such tier here
        raise MissingError(
            f"blob {digest.hex()} is missing from the {tier} tier: `torpor store check` "
            "says what it belonged to; restore it from a backup"
        )

    def remove(self, digest: bytes, tier: str) -> None:
        """Removes a file, unless it is being written or a backup is being made.

        Call it where no row can come to refer to it meanwhile.
        """
        with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB) as locked:
            if locked and not self._writing[digest]:
                self._disk.unlink(self.path(digest, tier))

    def files(self, tier: str) -> Iterator[tuple[bytes, Path]]:
        """All files of a tier by digest; what has another name is not a blob."""
        for first in range(256):
            for digest in self.beginning_with(first, tier):
                yield digest, self.path(digest, tier)

    def beginning_with(self, first: int, tier: str) -> list[bytes]:
        """The digests of a tier's files whose first byte this is."""
        try:
            names = os.listdir(self._root(tier) / f"{first:02x}")  # noqa: PTH208 -- thousands
        except FileNotFoundError:
            return []
        return sorted(bytes.fromhex(name) for name in names if len(name) == 64)

    def sweep_staging(self) -> None:
        """Removes what an earlier process left half-written. Only torpord itself may, at start."""
        for tier in self.tiers():
            for path in (self._root(tier) / "staging").iterdir():
                self._disk.unlink(path)

    def tiers(self) -> tuple[str, ...]:
        """The tiers that this data directory has."""
        return (UPPER,) if self.lower is None else (UPPER, LOWER)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """While this lasts no file is removed."""
        with self._lock(fcntl.LOCK_SH):
            yield

    @contextmanager
    def _lock(self, operation: int) -> Iterator[bool]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.directory / "lock", flags, 0o600)
        try:
            try:
                fcntl.flock(descriptor, operation)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def _root(self, tier: str) -> Path:
        if tier == LOWER:
            if self.lower is None:
                raise MissingError("no lower tier is configured, and a blob is in one: set it")
            return self.lower
        return self.directory

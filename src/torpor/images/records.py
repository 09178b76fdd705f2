"""What the image store takes and tells about images."""

from dataclasses import dataclass, field
from pathlib import Path

from torpor.images.config import ImageConfig
from torpor.images.names import parse_reference

TAG = "tag"
"""The kind of reference that is a name of an image."""


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """An image of the store, found by name."""

    name: str
    """The name it was asked for by."""
    digest: str
    """`sha256:` and 64 hex digits."""
    erofs: Path
    """Its root file system. Use `hold` to keep it from being collected."""
    size_bytes: int
    """Of the EROFS file."""
    config: ImageConfig


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image with all that the store knows about it."""

    digest: str
    rootfs_digest: str
    config: ImageConfig
    created: str
    size_bytes: int
    shared_bytes: int
    """Of size_bytes, what other images of this store have on disk anyway."""
    files_bytes: int
    """Sum of the sizes of its regular files, hard links counted once."""
    inodes: int
    sources: tuple[str, ...]
    """What it was made from: digests of manifests and builds."""
    users: tuple[str, ...]
    """KIND/NAME of every reference to it."""
    running: bool
    """Whether a VM has it mapped now."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Its names, as a person would write them."""
        prefix = f"{TAG}/"
        return tuple(
            parse_reference(user.removeprefix(prefix)).familiar
            for user in self.users
            if user.startswith(prefix)
        )


@dataclass(frozen=True, slots=True)
class NewImage:
    """What `ImageStore.add` puts into the store."""

    erofs: Path
    """A finished file inside this store's staging; it is moved away."""
    config: ImageConfig
    files_bytes: int
    inodes: int
    sources: tuple[str, ...] = field(default=())

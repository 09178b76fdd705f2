"""The image store: digest-named EROFS files, their descriptions, and who uses them.

    images/lock                     flock: shared while reading references, exclusive while changing
    images/sha256-HEX.json          an image: what its digest is of, then where it came from
    images/sha256-HEX.erofs         its root file system; equal ones are hard links of one file
    images/refs/KIND/NAME           one file per user of an image, holding the image's digest
    images/staging/RANDOM/          work in progress, locked by who works there

An image's digest is the SHA-256 of its canonical description (platform, digest of the EROFS file,
configuration), so the same root file system with another command is another image of the same file.
The description appears last and by rename: an image exists when its description does.

Nothing here needs a daemon. What is in use is known from the file system alone: by a reference
file (tags, snapshots, templates, instances), or by a shared flock on the EROFS file, which a VM
holds through its descriptor for as long as it lives. Deleting a file that is mapped leaves the
mapping alone.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torpor.durable import write_durably
from torpor.erofs import settle_erofs
from torpor.errors import ImageNotFoundError, TorporError
from torpor.images.config import parse_record
from torpor.images.errors import ImageError
from torpor.images.names import Reference, is_digest, parse_reference
from torpor.images.records import TAG, NewImage, ResolvedImage, StoredImage

MIN_DIGEST_PREFIX = 6


class ImageStore:
    """The images of one data directory. Instances are cheap; processes share by file locks."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.directory = data_dir / "images"

    # Reading ------------------------------------------------------------------------------------

    def resolve(self, name: str) -> ResolvedImage:
        """Finds an image by name, tag, digest, or a digest's first hex digits.

        Raises ImageNotFoundError. Reads two small files and takes no lock.
        """
        digest = self.find(name)
        if digest is None:
            raise ImageNotFoundError(
                f"image {name!r}: not in {self.directory}; `torpor image list` shows what is, "
                f"`torpor build`, `torpor image pull` and `torpor base-image` add to it"
            )
        document = self._read_document(digest)
        image = document["image"]
        return ResolvedImage(
            name=name,
            digest=digest,
            erofs=self._path(digest, "erofs"),
            size_bytes=document["size_bytes"],
            config=parse_record(image["config"], f"image {digest}"),
        )

    def find(self, name: str) -> str | None:
        """The digest that a name stands for, or None."""
        if is_digest(name):
            return name if self._path(name, "json").exists() else None
        try:
            reference = parse_reference(name)
        except ImageError:
            reference = None
        if reference is not None:
            digest = self._find_reference(reference)
            if digest is not None:
                return digest
        prefix = name.removeprefix("sha256:")
        if len(prefix) >= MIN_DIGEST_PREFIX and not set(prefix) - set("0123456789abcdef"):
            return self._find_prefix(name, prefix)
        if reference is None:
            parse_reference(name)
        return None

    def _find_reference(self, reference: Reference) -> str | None:
        if not reference.digest:
            return self._read_reference(TAG, reference.canonical)
        if self._path(reference.digest, "json").exists():
            return reference.digest
        for digest in self._digests():
            with suppress(TorporError):
                if reference.canonical in self._read_document(digest)["sources"]:
                    return digest
        return None

    def _find_prefix(self, name: str, prefix: str) -> str | None:
        found = [path.stem for path in self.directory.glob(f"sha256-{prefix}*.json")]
        if len(found) > 1:
            raise ImageError(f"image {name!r}: {len(found)} images begin so; give more digits")
        return found[0].replace("-", ":") if found else None

    def find_source(self, source: str) -> str | None:
        """The digest of the image that was made from `source`, or None."""
        for digest in self._digests():
            with suppress(TorporError):
                if source in self._read_document(digest)["sources"]:
                    return digest
        return None

    def images(self) -> list[StoredImage]:
        """All images, newest first."""
        users = self._users()
        images = []
        for digest in self._digests():
            with suppress(ImageNotFoundError):
                images.append(self._describe(digest, users.get(digest, [])))
        return sorted(images, key=lambda image: (image.created, image.digest), reverse=True)

    def inspect(self, name: str) -> StoredImage:
        """All about one image. Raises ImageNotFoundError."""
        digest = self.resolve(name).digest
        return self._describe(digest, self._users().get(digest, []))

    def check(self, kind: str) -> list[str]:
        """Verifies all images, and that the users of one kind have theirs; what is wrong."""
        problems = []
        whole: dict[tuple[int, int], str] = {}
        """Digests by device and inode: equal root file systems are one file."""
        for digest in self._digests():
            try:
                wanted = self._read_document(digest)["image"]["rootfs"]
                path = self._path(digest, "erofs")
                status = path.stat()
                place = (status.st_dev, status.st_ino)
                if place not in whole:
                    whole[place] = file_digest(path)
                if whole[place] != wanted:
                    problems.append(f"image {digest}: {path} is damaged: build or pull it again")
            except FileNotFoundError:
                problems.append(f"image {digest}: its file system is missing: build it again")
            except TorporError as error:
                problems.append(str(error))
        missing = [one for one in self.referred(kind) if not self._path(one, "json").exists()]
        return problems + [f"image {one} is missing: instances are made of it" for one in missing]

    def hold(self, image: ResolvedImage) -> int:
        """Opens the image's EROFS file and returns a descriptor that keeps it from collection.

        The shared lock on it goes with the last duplicate of the descriptor, in whatever process.
        """
        try:
            descriptor = os.open(image.erofs, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ImageNotFoundError(
                f"image {image.name!r}: removed meanwhile; resolve it again"
            ) from None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)
            raise ImageNotFoundError(f"image {image.name!r}: removed meanwhile; resolve it again")
        return descriptor

    @contextmanager
    def held(self, image: ResolvedImage) -> Iterator[None]:
        """Keeps the image from collection for the block."""
        descriptor = self.hold(image)
        try:
            yield
        finally:
            os.close(descriptor)

    # Changing -----------------------------------------------------------------------------------

    def add(self, new: NewImage, tag: Reference | None = None) -> str:
        """Puts an image into the store, tags it if asked, and returns its digest.

        The EROFS file is stored once however many images have it. Adding what is there adds its
        sources only. Needs room for nothing but the description.
        """
        rootfs_digest = file_digest(new.erofs)
        image = {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": rootfs_digest,
            "config": new.config.to_record(),
        }
        digest = _digest_of(image)
        settle_erofs(new.erofs)
        with self._locked():
            existing = self._path(digest, "json")
            if existing.exists() and self._path(digest, "erofs").exists():
                document = self._read_document(digest)
                document["sources"] = sorted({*document["sources"], *new.sources})
            else:
                self._place(new.erofs, digest, rootfs_digest)
                document = {
                    "image": image,
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "size_bytes": self._path(digest, "erofs").stat().st_size,
                    "files_bytes": new.files_bytes,
                    "inodes": new.inodes,
                    "sources": sorted(new.sources),
                }
            self._write(existing, json.dumps(document, indent=1).encode())
            if tag is not None:
                self._write_reference(TAG, tag.canonical, digest)
        new.erofs.unlink(missing_ok=True)
        return digest

    def _place(self, erofs: Path, digest: str, rootfs_digest: str) -> None:
        target = self._path(digest, "erofs")
        target.unlink(missing_ok=True)
        for other in self._digests():
            with suppress(TorporError, OSError):
                if self._read_document(other)["image"]["rootfs"] == rootfs_digest:
                    target.hardlink_to(self._path(other, "erofs"))
                    return
        erofs.chmod(0o600)
        erofs.rename(target)

    def note(self, digest: str, sources: Iterable[str], tag: Reference | None = None) -> None:
        """Adds to what an image is known to be made from, and tags it if asked."""
        with self._locked():
            document = self._read_document(digest)
            document["sources"] = sorted({*document["sources"], *sources})
            self._write(self._path(digest, "json"), json.dumps(document, indent=1).encode())
            if tag is not None:
                self._write_reference(TAG, tag.canonical, digest)

    def tag(self, digest: str, reference: Reference) -> None:
        """Makes `reference` a name of the image; another image loses it."""
        if reference.digest:
            raise ImageError(f"tag {reference.canonical}: a digest can't be given to an image")
        self.refer(TAG, reference.canonical, digest)

    def refer(self, kind: str, name: str, digest: str) -> None:
        """Notes a user of an image, which is not collected before `release(kind, name)`."""
        with self._locked():
            if not self._path(digest, "json").exists():
                raise ImageNotFoundError(f"image {digest}: not in {self.directory}")
            self._write_reference(kind, name, digest)

    def referred(self, kind: str) -> list[str]:
        """The digests of the images that users of one kind have, also of missing ones."""
        paths = sorted((self.directory / "refs" / kind).glob("*"))
        return list(dict.fromkeys(path.read_text().strip() for path in paths))

    def release(self, kind: str, name: str) -> None:
        """Forgets a user of an image. The image stays until it is collected."""
        with self._locked():
            self._reference_path(kind, name).unlink(missing_ok=True)

    def release_all(self, kind: str, digest: str) -> None:
        """Forgets all users of one kind that an image has."""
        with self._locked():
            for user in self._users().get(digest, []):
                if user.startswith(f"{kind}/"):
                    self._reference_path(kind, user.removeprefix(f"{kind}/")).unlink()

    def remove(self, name: str) -> tuple[list[str], list[str]]:
        """Removes a tag, or by digest an image with all its tags; then collects that image.

        Returns the names untagged and the digests deleted. Nothing is deleted that something else
        refers to; its users are named by `inspect`.
        """
        with self._locked():
            digest = self.resolve(name).digest
            tags = [user for user in self._users().get(digest, []) if user.startswith(f"{TAG}/")]
            with suppress(ImageError):
                # A name that could be a digest's first digits as well is the name.
                wanted = f"{TAG}/{parse_reference(name).canonical}"
                tags = [wanted] if wanted in tags else tags
            for user in tags:
                self._reference_path(TAG, user.removeprefix(f"{TAG}/")).unlink(missing_ok=True)
            deleted = self._collect([digest])
        untagged = [parse_reference(user.removeprefix(f"{TAG}/")).familiar for user in tags]
        return untagged, deleted

    def prune(self, *, tagged: bool = False) -> tuple[list[str], int]:
        """Deletes what nothing refers to, and with `tagged` what only tags refer to.

        Returns the digests deleted and the bytes that this freed on disk.
        """
        with self._locked():
            before = self._disk_bytes()
            if tagged:
                for digest, users in self._users().items():
                    if not self._is_mapped(digest) and all(u.startswith(f"{TAG}/") for u in users):
                        for user in users:
                            self._reference_path(TAG, user.removeprefix(f"{TAG}/")).unlink()
            deleted = self._collect(list(self._digests()))
            described = {f"{digest.replace(':', '-')}.erofs" for digest in self._digests()}
            for orphan in self.directory.glob("*.erofs"):
                if orphan.name not in described:
                    orphan.unlink()
            self._sweep_staging()
            return deleted, before - self._disk_bytes()

    def _collect(self, digests: list[str]) -> list[str]:
        users = self._users()
        deleted = []
        for digest in digests:
            if users.get(digest):
                continue
            # The lock is kept over the deletion: `hold` then finds either the file or nothing.
            with self._unmapped(digest) as unmapped:
                if unmapped:
                    self._path(digest, "json").unlink(missing_ok=True)
                    self._path(digest, "erofs").unlink(missing_ok=True)
                    deleted.append(digest)
        return deleted

    # Staging ------------------------------------------------------------------------------------

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A private directory on the store's file system, gone at the end however that comes.

        What a killed process left is swept by the next one.
        """
        # Made and locked under the store's lock, as sweeping is: nobody sees it without its owner.
        with self._locked():
            self._sweep_staging()
            directory = self.directory / "staging" / secrets.token_hex(8)
            directory.parent.mkdir(exist_ok=True, mode=0o700)
            directory.mkdir(mode=0o700)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)

    def _sweep_staging(self) -> None:
        """Removes what nobody holds; the store's lock is held."""
        for leftover in (self.directory / "staging").glob("*"):
            with suppress(OSError):
                descriptor = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(leftover, ignore_errors=True)
                finally:
                    os.close(descriptor)

    # Files --------------------------------------------------------------------------------------

    def _path(self, digest: str, suffix: str) -> Path:
        return self.directory / f"{digest.replace(':', '-')}.{suffix}"

    def _digests(self) -> Iterator[str]:
        for path in sorted(self.directory.glob("sha256-*.json")):
            yield path.stem.replace("-", ":")

    def _read_document(self, digest: str) -> dict[str, Any]:
        path = self._path(digest, "json")
        try:
            document = json.loads(path.read_bytes())
            matches = _digest_of(document["image"]) == digest
        except FileNotFoundError:
            raise ImageNotFoundError(f"image {digest}: not in {self.directory}") from None
        except (ValueError, KeyError, TypeError):
            matches = False
        if not matches or not isinstance(document.get("sources"), list):
            raise ImageError(
                f"image {digest}: {path} is damaged (its content does not match its name); "
                "remove it and build or pull the image again"
            )
        return dict(document)

    def _describe(self, digest: str, users: list[str]) -> StoredImage:
        document = self._read_document(digest)
        try:
            status = self._path(digest, "erofs").stat()
        except FileNotFoundError:
            raise ImageNotFoundError(f"image {digest}: its EROFS file is missing") from None
        return StoredImage(
            digest=digest,
            rootfs_digest=document["image"]["rootfs"],
            config=parse_record(document["image"]["config"], f"image {digest}"),
            created=document["created"],
            size_bytes=status.st_size,
            shared_bytes=status.st_size if status.st_nlink > 1 else 0,
            files_bytes=document["files_bytes"],
            inodes=document["inodes"],
            sources=tuple(document["sources"]),
            users=tuple(users),
            running=self._is_mapped(digest),
        )

    @contextmanager
    def _unmapped(self, digest: str) -> Iterator[bool]:
        """Holds the EROFS file exclusively if no VM has it mapped, and says whether so."""
        try:
            descriptor = os.open(self._path(digest, "erofs"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True
            return
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def _is_mapped(self, digest: str) -> bool:
        with self._unmapped(digest) as unmapped:
            return not unmapped

    def _users(self) -> dict[str, list[str]]:
        users: dict[str, list[str]] = {}
        for path in sorted((self.directory / "refs").glob("*/*")):
            with suppress(FileNotFoundError):
                digest = path.read_text().strip()
                users.setdefault(digest, []).append(f"{path.parent.name}/{_unquote(path.name)}")
        return users

    def _disk_bytes(self) -> int:
        sizes = {}
        for path in self.directory.glob("*.erofs"):
            status = path.stat()
            sizes[status.st_ino] = status.st_size
        return sum(sizes.values())

    def _reference_path(self, kind: str, name: str) -> Path:
        return self.directory / "refs" / kind / _quote(name)

    def _read_reference(self, kind: str, name: str) -> str | None:
        try:
            digest = self._reference_path(kind, name).read_text().strip()
        except FileNotFoundError:
            return None
        return digest if self._path(digest, "json").exists() else None

    def _write_reference(self, kind: str, name: str, digest: str) -> None:
        path = self._reference_path(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write(path, f"{digest}\n".encode())

    def _write(self, path: Path, content: bytes) -> None:
        temporary = self.directory / f"new-{secrets.token_hex(8)}"
        write_durably(path, content, mode=0o666, temporary=temporary)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.directory / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in self.directory.glob("new-*"):
                leftover.unlink(missing_ok=True)
            yield


def file_digest(path: Path) -> str:
    """The `sha256:` digest of a file's content."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _digest_of(image: object) -> str:
    canonical = json.dumps(image, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def _quote(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")


def _unquote(name: str) -> str:
    return name.replace("%2F", "/").replace("%25", "%")

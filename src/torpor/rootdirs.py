"""Directories as root file systems: packed to EROFS once and cached by content.

Below `<data>/cache/rootdirs`:

    images/SHA256.erofs   an image, named by the digest of its bytes
    index/KEY             of one directory: fingerprint, digest of its image, path
    index/KEY.lock        held while that directory is packed
    tmp/                  images being made, renamed into images/ when they are whole
    lock                  shared by everyone at work here, exclusive for who removes old images

A directory's *fingerprint* covers path, inode, type and mode, owner, size, device number, and the
modification and change times in nanoseconds of every entry in it. The change time cannot be set
by a program, so a file that was rewritten with size and modification time kept is still noticed.
Two holes remain, and are closed: file systems stamp times from a clock that ticks every few
milliseconds, so a directory is only believed once its newest change is older than a tick; and a
directory that changes while it is packed is packed again. What is written through a shared
mapping is noticed when the kernel has updated the file's times (msync(2), munmap(2), writeback).
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torpor.errors import PackError

# The coarsest clock in use: HZ=100 gives 10 ms. Twice that, and some.
_TIMESTAMP_TICK_NS = 25_000_000
_PACK_ATTEMPTS = 3
_UNUSED_IMAGE_LIFETIME_S = 3600
_HASH_CHUNK_BYTES = 1 << 20


def packed_root(directory: Path, data: Path) -> Path:
    """The EROFS image of `directory` as it is now, made if the cache does not have it.

    Raises PackError if the directory is not readable, holds a mount point, or keeps changing.
    The image stays at least an hour after its last use, also if the directory changes meanwhile.
    """
    directory = directory.resolve()
    cache = data / "cache" / "rootdirs"
    for name in ("images", "index", "tmp"):
        (cache / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    index = cache / "index" / hashlib.sha256(os.fsencode(directory)).hexdigest()

    fingerprint = _settled_fingerprint(directory)
    with _lock(cache / "lock", fcntl.LOCK_SH):
        image = _cached(cache, index, fingerprint)
        if image is not None:
            return image
        with _lock(index.with_suffix(".lock"), fcntl.LOCK_EX):
            image = _cached(cache, index, fingerprint)  # another process may have been faster
            if image is None:
                image = _pack(directory, cache, index)
    _remove_unused(cache)
    return image


def fingerprint_directory(directory: Path) -> tuple[str, int]:
    """A digest over the metadata of everything in `directory`, and its newest change time (ns).

    Raises PackError if something cannot be read or lies on another file system.
    """
    digest = hashlib.sha256()
    newest_ns = 0

    def add(path: str, status: os.stat_result) -> None:
        nonlocal newest_ns
        newest_ns = max(newest_ns, status.st_ctime_ns)
        facts = (
            status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_nlink,
            status.st_rdev, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
        )  # fmt: skip
        digest.update(b"%b\0%b\n" % (os.fsencode(path), repr(facts).encode()))

    try:
        top = directory.stat()
        add("", top)
        todo = [""]
        while todo:
            parent = todo.pop()
            with os.scandir(os.path.join(directory, parent)) as entries:  # noqa: PTH118 -- hot
                found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                status = entry.stat(follow_symlinks=False)
                path = f"{parent}/{entry.name}" if parent else entry.name
                if status.st_dev != top.st_dev:
                    raise PackError(
                        f"{directory / path} lies on another file system than {directory}: "
                        "unmount it, or copy the directory"
                    )
                add(path, status)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(path)
    except OSError as error:
        raise PackError(f"cannot read {error.filename or directory}: {error.strerror}") from error
    return digest.hexdigest(), newest_ns


def _settled_fingerprint(directory: Path) -> str:
    """The fingerprint at a moment when a further change would surely alter it."""
    while True:
        began_ns = time.time_ns()
        fingerprint, newest_ns = fingerprint_directory(directory)
        age_ns = began_ns - newest_ns
        # A change time in the future (a clock that was set back) is not waited for.
        if age_ns >= _TIMESTAMP_TICK_NS or age_ns < -_TIMESTAMP_TICK_NS:
            return fingerprint
        time.sleep(_TIMESTAMP_TICK_NS / 1e9)


def _cached(cache: Path, index: Path, fingerprint: str) -> Path | None:
    try:
        known, digest, _ = index.read_text(errors="surrogateescape").split("\n", 2)
    except (FileNotFoundError, ValueError):
        return None
    if known != fingerprint:
        return None
    image = cache / "images" / f"{digest}.erofs"
    try:
        os.utime(image)  # used now: not to be removed for a while
    except FileNotFoundError:
        return None
    return image


def _pack(directory: Path, cache: Path, index: Path) -> Path:
    from torpor.erofs import make_erofs, settle_erofs  # a cache hit does without its imports

    made = cache / "tmp" / f"{index.name}.{os.getpid()}"
    try:
        for _ in range(_PACK_ATTEMPTS):
            before = _settled_fingerprint(directory)
            make_erofs(directory, made)
            if fingerprint_directory(directory)[0] == before:
                break
        else:
            raise PackError(
                f"{directory} changed while it was packed, {_PACK_ATTEMPTS} times: "
                "stop what writes there, or copy it"
            )
        digest = _file_digest(made)
        settle_erofs(made)  # whole on disk before it gets its name
        image = cache / "images" / f"{digest}.erofs"
        made.chmod(0o400)
        made.replace(image)
    finally:
        made.unlink(missing_ok=True)
    entry = cache / "tmp" / f"{index.name}.{os.getpid()}.index"
    entry.write_text(f"{before}\n{digest}\n{directory}", errors="surrogateescape")
    entry.replace(index)
    return image


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_unused(cache: Path) -> None:
    """Remove images that no directory has any more, and what killed processes left behind."""
    with _lock(cache / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
        if not alone:
            return  # the next one to pack a directory does it
        for leftover in (cache / "tmp").iterdir():
            leftover.unlink()
        wanted = set()
        for index in (cache / "index").iterdir():
            if index.suffix == ".lock":
                continue
            _, digest, directory = index.read_text(errors="surrogateescape").split("\n", 2)
            if Path(directory).is_dir():
                wanted.add(digest)
            else:
                index.unlink()
                index.with_suffix(".lock").unlink(missing_ok=True)
        oldest_s = time.time() - _UNUSED_IMAGE_LIFETIME_S
        for image in (cache / "images").iterdir():
            if image.stem not in wanted and image.stat().st_mtime < oldest_s:
                image.unlink()


@contextmanager
def _lock(path: Path, how: int) -> Iterator[bool]:
    """Hold flock(2) on `path` for the block; False if LOCK_NB was asked for and it is taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)

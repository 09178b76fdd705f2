"""Images out of the store: to registries, OCI layouts, docker archives and plain tars.

The EROFS file is all there is of an image, so an exported one has a single layer made from it.
Equal images make equal archives: entries in order, times from the files, gzip without a date.
"""

import hashlib
import io
import json
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from torpor.images.config import expose_history
from torpor.images.convert import full_disk_explained
from torpor.images.erofs import ErofsReader, Inode
from torpor.images.errors import ImageError
from torpor.images.importing import DOCKER_ARCHIVE, OCI_ARCHIVE, OCI_LAYOUT, ROOTFS, Progress
from torpor.images.names import Reference
from torpor.images.records import ResolvedImage
from torpor.images.settings import ImageSettings
from torpor.images.store import ImageStore
from torpor.images.transports import Access, Skopeo

_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def push(
    store: ImageStore,
    image: ResolvedImage,
    reference: Reference,
    settings: ImageSettings,
    access: Access,
    progress: Progress,
) -> None:
    """Sends an image to a registry under `reference`."""
    with store.staging() as staging, full_disk_explained(store.data_dir), store.held(image):
        directory = staging / "image"
        progress(f"packing {image.name}")
        write_dir_image(image, directory)
        progress(f"pushing {reference.canonical}")
        Skopeo(staging, settings, access).send(f"dir:{directory}", reference)


def export_image(
    store: ImageStore,
    image: ResolvedImage,
    target: Path,
    format_: str,
    name: Reference | None,
    settings: ImageSettings,
    progress: Progress,
) -> None:
    """Writes an image to `target` in one of importing.FORMATS. The file appears only when whole."""
    if target.exists():
        raise ImageError(f"{target}: exists already; remove it or name another file")
    if not target.parent.is_dir():
        raise ImageError(f"{target.parent}: no such directory")
    progress(f"packing {image.name}")
    with store.staging() as staging, full_disk_explained(target.parent), store.held(image):
        partial = target.with_name(f".{target.name}.partial")
        _remove(partial)  # of an export that was killed
        try:
            if format_ == ROOTFS:
                with partial.open("xb") as file:
                    write_layer(image.erofs, file)
            elif format_ in (OCI_LAYOUT, OCI_ARCHIVE, DOCKER_ARCHIVE):
                directory = staging / "image"
                write_dir_image(image, directory)
                made = staging / "export"
                suffix = (
                    f":{name.canonical if format_ == DOCKER_ARCHIVE else name.tag}" if name else ""
                )
                Skopeo(staging, settings).convert(
                    f"dir:{directory}", f"{format_}:{made}{suffix}", image.name, staging
                )
                shutil.move(made, partial)
            else:
                raise ImageError(f"format {format_!r} is unknown")
            partial.rename(target)
        finally:
            _remove(partial)


def write_dir_image(image: ResolvedImage, directory: Path) -> str:
    """Writes an image in skopeo's `dir:` format, with one uncompressed layer; its image id.

    In docker's schema, as OCI's has no health checks.
    """
    directory.mkdir()
    layer = directory / "layer"
    with layer.open("xb") as file:
        diff_id = write_layer(image.erofs, file)
    layer_bytes = layer.stat().st_size
    layer.rename(directory / diff_id.removeprefix("sha256:"))
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": image.config.to_oci(),
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [
                {
                    "created": "1970-01-01T00:00:00Z",
                    "comment": f"torpor {image.digest}",
                    **expose_history(image.config),
                }
            ],
        },
        sort_keys=True,
    ).encode()
    config_hex = hashlib.sha256(config).hexdigest()
    (directory / config_hex).write_bytes(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": len(config),
            "digest": f"sha256:{config_hex}",
        },
        "layers": [
            {
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                "size": layer_bytes,
                "digest": diff_id,
            }
        ],
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / "version").write_text("Directory Transport Version: 1.1\n")
    return f"sha256:{config_hex}"


def write_layer(erofs: Path, target: IO[bytes]) -> str:
    """Writes the files of an EROFS image as a pax tar and returns the tar's digest."""
    hashing = _HashingWriter(target)
    with (
        ErofsReader(erofs) as reader,
        tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        first_names: dict[int, bytes] = {}
        for path, inode in reader.walk():
            name = b"/".join(path)
            entry = _tar_entry(name, inode)
            if inode.nid in first_names:
                entry.type = tarfile.LNKTYPE
                entry.linkname = _text(first_names[inode.nid])
                entry.pax_headers = {}
            elif stat.S_ISLNK(inode.mode):
                entry.linkname = _text(b"".join(reader.data(inode)))
            if entry.type == tarfile.REGTYPE:
                entry.size = inode.size_bytes
                archive.addfile(entry, _Chunks(reader.data(inode)))
            else:
                archive.addfile(entry)
            if inode.links > 1 and not stat.S_ISDIR(inode.mode):
                first_names.setdefault(inode.nid, name)
            # It keeps every member for reading back, which nobody does here.
            archive.members.clear()  # type: ignore[attr-defined]
    return hashing.digest


def _tar_entry(name: bytes, inode: Inode) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(_text(name) or ".")
    entry.type = _TYPES[stat.S_IFMT(inode.mode)]
    entry.mode = stat.S_IMODE(inode.mode)
    entry.uid, entry.gid = inode.uid, inode.gid
    # From 1970 in both directions, as it is written: floors have another fraction before 1970.
    seconds, nanoseconds = divmod(abs(inode.mtime_ns), 1_000_000_000)
    sign = -1 if inode.mtime_ns < 0 else 1
    entry.mtime = sign * seconds
    entry.devmajor, entry.devminor = inode.device
    entry.pax_headers = {
        f"SCHILY.xattr.{_text(key)}": _text(value) for key, value in sorted(inode.xattrs.items())
    }
    if nanoseconds:
        # As text: a float has no room for nanoseconds.
        entry.pax_headers["mtime"] = f"{'-' * (sign < 0)}{seconds}.{nanoseconds:09}"
    return entry


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _HashingWriter(io.RawIOBase):
    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        self._hash.update(data)
        self._target.write(data)
        return len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _Chunks(io.RawIOBase):
    """A file to read from, made of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

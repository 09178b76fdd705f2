"""Reading of EROFS images such as `torpor.erofs.make_erofs` writes, to export them again.

On-disk format: Linux Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h.
"""

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from torpor.images.errors import ImageError

BLOCK_BYTES = 4096
_SUPERBLOCK_OFFSET = 1024
_MAGIC = 0xE0F5E1E2
_SLOT_BYTES = 32
_FLAT_PLAIN, _FLAT_INLINE = 0, 2
_MAX_DEPTH = 2_048
_XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


@dataclass(slots=True)
class Inode:
    """An inode of an image. `data_offset` is where in the file its content begins."""

    nid: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size_bytes: int
    links: int
    device: tuple[int, int]
    layout: int
    data_offset: int
    inline_offset: int
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def is_erofs(file: BinaryIO) -> bool:
    """Whether a file is an EROFS image, of whatever kind. Leaves it at its beginning."""
    file.seek(_SUPERBLOCK_OFFSET)
    magic = file.read(4)
    file.seek(0)
    return magic == _MAGIC.to_bytes(4, "little")


class ErofsReader:
    """Reads an uncompressed EROFS image such as `torpor.erofs.make_erofs` writes.

    Raises ImageError for anything else, and for a damaged image.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("rb")
        (
            magic,
            _checksum,
            self._compatible,
            block_bits,
            _slots,
            self._root_nid,
            self.inodes,
            build_time_s,
            build_time_ns,
            _blocks,
            self._meta_block,
            self._xattr_block,
        ) = struct.unpack("<IIIBBHQqIIII", self._read(_SUPERBLOCK_OFFSET, 48))
        (incompatible,) = struct.unpack("<I", self._read(_SUPERBLOCK_OFFSET + 80, 4))
        self.build_mtime_ns = build_time_s * 1_000_000_000 + build_time_ns
        if magic != _MAGIC or block_bits != 12 or incompatible:
            self.close()
            raise ImageError(f"{path}: no uncompressed EROFS image of 4 KiB blocks")

    def __enter__(self) -> "ErofsReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def walk(self) -> Iterator[tuple[tuple[bytes, ...], Inode]]:
        """Every name with its inode, a directory before what it holds, names in order."""
        todo: list[tuple[tuple[bytes, ...], int]] = [((), self._root_nid)]
        while todo:
            path, nid = todo.pop()
            inode = self.inode(nid)
            yield path, inode
            if stat.S_ISDIR(inode.mode):
                if len(path) > _MAX_DEPTH:
                    raise self._damaged("directories are nested too deeply")
                entries = sorted(self.entries(inode), reverse=True)
                todo.extend(((*path, name), child) for name, child in entries)

    def inode(self, nid: int) -> Inode:
        """Reads an inode."""
        offset = self._meta_block * BLOCK_BYTES + nid * _SLOT_BYTES
        raw = self._read(offset, 64)
        format_, xattr_count, mode = struct.unpack_from("<HHH", raw)
        layout = format_ >> 1 & 7
        if format_ & 1:
            (size, union, _ino, uid, gid, mtime_s, mtime_ns, links) = struct.unpack_from(
                "<QIIIIqII", raw, 8
            )
            inode_bytes, time_ns = 64, mtime_s * 1_000_000_000 + mtime_ns
        else:
            (links, size, _, union, _ino, uid, gid) = struct.unpack_from("<HIIIIHH", raw, 6)
            inode_bytes, time_ns = 32, self.build_mtime_ns
        if layout not in (_FLAT_PLAIN, _FLAT_INLINE):
            raise self._damaged(f"inode {nid} has data layout {layout}, which is not supported")
        xattr_bytes = 12 + 4 * (xattr_count - 1) if xattr_count else 0
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        # The kernel's new_encode_dev(): minor 7:0, major 19:8, minor 31:20.
        device = (union >> 8 & 0xFFF, union & 0xFF | union >> 12 & 0xFFF00)
        return Inode(
            nid=nid,
            mode=mode,
            uid=uid,
            gid=gid,
            mtime_ns=time_ns,
            size_bytes=0 if is_device else size,
            links=links,
            device=device if is_device else (0, 0),
            layout=layout,
            data_offset=union * BLOCK_BYTES,
            inline_offset=offset + inode_bytes + xattr_bytes,
            xattrs=self._xattrs(offset + inode_bytes, xattr_bytes),
        )

    def entries(self, directory: Inode) -> Iterator[tuple[bytes, int]]:
        """Names and inode numbers of a directory, without `.` and `..`."""
        content = b"".join(self.data(directory))
        for start in range(0, len(content), BLOCK_BYTES):
            block = content[start : start + BLOCK_BYTES]
            count = struct.unpack_from("<H", block, 8)[0] // 12 if len(block) >= 12 else 0
            if count * 12 > len(block):
                raise self._damaged(f"directory {directory.nid} has no valid entry table")
            heads = [struct.unpack_from("<QHBB", block, 12 * at) for at in range(count)]
            ends = [*(head[1] for head in heads[1:]), len(block)]
            for (nid, name_offset, _type, _reserved), end in zip(heads, ends, strict=True):
                name = block[name_offset:end].split(b"\0", 1)[0]
                if name in (b".", b".."):
                    continue
                if not name or b"/" in name:
                    raise self._damaged(f"directory {directory.nid} has an invalid name")
                yield name, nid

    def data(self, inode: Inode) -> Iterator[bytes]:
        """The content of a file, the target of a link, or the blocks of a directory."""
        left = inode.size_bytes
        inline_bytes = left % BLOCK_BYTES if inode.layout == _FLAT_INLINE else 0
        plain = left - inline_bytes
        offset = inode.data_offset
        while plain:
            chunk = self._read(offset, min(plain, 64 * BLOCK_BYTES))
            offset += len(chunk)
            plain -= len(chunk)
            yield chunk
        if inline_bytes:
            yield self._read(inode.inline_offset, inline_bytes)

    def _xattrs(self, offset: int, length: int) -> dict[bytes, bytes]:
        if not length:
            return {}
        raw = self._read(offset, length)
        shared_count = raw[4]
        xattrs: dict[bytes, bytes] = {}
        for at in range(shared_count):
            (index,) = struct.unpack_from("<I", raw, 12 + 4 * at)
            where = self._xattr_block * BLOCK_BYTES + 4 * index
            head = self._read(where, 4)
            name_bytes, _, value_bytes = struct.unpack("<BBH", head)
            self._take_xattr(xattrs, self._read(where, 4 + name_bytes + value_bytes))
        at = 12 + 4 * shared_count
        while at + 4 <= length:
            name_bytes, _, value_bytes = struct.unpack_from("<BBH", raw, at)
            size = 4 + name_bytes + value_bytes
            self._take_xattr(xattrs, raw[at : at + size])
            at += -(-size // 4) * 4
        return xattrs

    def _take_xattr(self, xattrs: dict[bytes, bytes], entry: bytes) -> None:
        name_bytes, prefix, _value_bytes = struct.unpack_from("<BBH", entry)
        if prefix not in _XATTR_PREFIXES:
            raise self._damaged(f"extended attribute prefix {prefix} is unknown")
        name = _XATTR_PREFIXES[prefix] + entry[4 : 4 + name_bytes]
        xattrs[name] = entry[4 + name_bytes :]

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) < min(length, 32):
            raise self._damaged(f"nothing at offset {offset:,}")
        return data

    def _damaged(self, what: str) -> ImageError:
        return ImageError(f"{self._path}: damaged EROFS image: {what}")

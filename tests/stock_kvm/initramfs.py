"""Writing an initramfs: a cpio archive in the `newc` format of the kernel's early user space.

Documentation/driver-api/early-userspace/buffer-format.rst of the kernel describes it: for each
entry a header of fixed-width hexadecimal fields, the name, the content, each padded to 4 bytes.
"""

import stat
from pathlib import Path
from typing import BinaryIO


class InitramfsWriter:
    """Adds entries to an archive that is written as they come. Call `close` at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._next_inode = 1

    def directory(self, path: str) -> None:
        self._entry(path, stat.S_IFDIR | 0o755, b"")

    def symlink(self, path: str, target: str) -> None:
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int) -> None:
        """A character device."""
        self._entry(path, stat.S_IFCHR | 0o600, b"", major, minor)

    def file(self, path: str, content: bytes | Path, mode: int = 0o755) -> None:
        data = content if isinstance(content, bytes) else content.read_bytes()
        self._entry(path, stat.S_IFREG | mode, data)

    def close(self) -> None:
        self._entry("TRAILER!!!", 0, b"")

    def _entry(self, path: str, mode: int, content: bytes, major: int = 0, minor: int = 0) -> None:
        name = path.encode() + b"\0"
        links, mtime, owner, group, on_major, on_minor, checksum = 1, 0, 0, 0, 0, 0, 0
        fields = (
            self._next_inode, mode, owner, group, links, mtime, len(content), on_major, on_minor,
            major, minor, len(name), checksum,
        )  # fmt: skip
        self._next_inode += 1
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._padded(header + name)
        self._padded(content)

    def _padded(self, data: bytes) -> None:
        self._file.write(data + bytes(-len(data) % 4))

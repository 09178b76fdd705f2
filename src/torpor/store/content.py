"""The content of a snapshot, which may be too large to be held in memory."""

import fcntl
import os
from functools import cached_property
from typing import Self

from torpor.snapshot_format import digest_of, is_whole
from torpor.store.errors import DamagedError

_CONSTANT = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class OpenFile:
    """A descriptor that is closed when nothing refers to it any more."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Content:
    """A snapshot's file: in memory, or an open one of which only its head is ever read here.

    `digest` is that by which it is known, if it is; nothing is checked before `read`.
    """

    def __init__(self, source: bytes | OpenFile, digest: bytes | None = None) -> None:
        self._source = source
        if isinstance(source, OpenFile):
            self.size_bytes = os.fstat(source.number).st_size
        else:
            self.size_bytes = len(source)
        if digest is not None:
            self.digest = digest

    @classmethod
    def opened(cls, path: "os.PathLike[str]", digest: bytes) -> Self:
        """Of a file that was stored under that digest. Raises OSError."""
        return cls(OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC)), digest)

    @cached_property
    def digest(self) -> bytes:
        """By which it is named and sealed."""
        return digest_of(self._part, self.size_bytes)

    @property
    def data(self) -> bytes | None:
        """All of it, if it is in memory."""
        return self._source if isinstance(self._source, bytes) else None

    def read(self) -> bytes:
        """All of it, checked. Raises DamagedError."""
        held = Content(self._part(0, self.size_bytes), self.digest)
        held.check()
        return held._part(0, self.size_bytes)

    def check(self) -> None:
        """Raises DamagedError unless all of it is as its digest says."""
        if not self.is_whole():
            raise DamagedError(
                f"snapshot {self.digest.hex()}: content does not match its digest: it will not be "
                "run; restore a backup"
            )

    def is_whole(self) -> bool:
        """Whether all of it is as its digest says."""
        return is_whole(self._part, self.size_bytes, self.digest)

    @cached_property
    def file(self) -> OpenFile:
        """It as an open file, which no VM process that is given it can change."""
        if isinstance(self._source, OpenFile):
            return self._source
        made = OpenFile(os.memfd_create("snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        self.write_to(made.number)
        fcntl.fcntl(made.number, fcntl.F_ADD_SEALS, _CONSTANT)
        return made

    def write_to(self, descriptor: int) -> None:
        """Writes all of it to a file. Raises OSError."""
        if isinstance(self._source, bytes):
            view = memoryview(self._source)
            while view:
                view = view[os.write(descriptor, view) :]
            return
        at = 0
        while at < self.size_bytes:
            copied = os.sendfile(descriptor, self._source.number, at, self.size_bytes - at)
            if not copied:
                raise DamagedError(f"snapshot {self.digest.hex()}: its file became shorter")
            at += copied

    def _part(self, at: int, size: int) -> bytes:
        if isinstance(self._source, bytes):
            return self._source[at : at + size]
        found = os.pread(self._source.number, size, at)
        while len(found) < size:
            more = os.pread(self._source.number, size - len(found), at + len(found))
            if not more:
                break
            found += more
        return found

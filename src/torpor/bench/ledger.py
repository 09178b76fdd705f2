"""What a density run knows of each instance, in one file that outlives the run's process.

    header   16 bytes   magic `TPLEDGER`, version u32, record size u32
    record   32 bytes   uuid 16 bytes (zeros: not known to exist)
                        durable u32   the count that was surely in a committed state
                        answered u32  the highest count that was answered
                        asked u32     requests sent: above `answered` while one is under way or lost
                        at_ms u32     when its last answer came, since the run began

The file is mapped: whatever happens to the process, what it noted is there. Numbers are little
endian. `torpor.bench.audit` has the rules by which entries change.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from torpor.errors import TorporError

_MAGIC = b"TPLEDGER"
_VERSION = 1
_HEADER = struct.Struct("<8sII")
_RECORD = struct.Struct("<16sIIII")
_NOBODY = bytes(16)


@dataclass(frozen=True, slots=True)
class Entry:
    """One instance."""

    uuid: bytes
    durable: int
    answered: int
    asked: int
    at_ms: int

    @property
    def known(self) -> bool:
        """Whether the server answered that it was created."""
        return self.uuid != _NOBODY


class Ledger:
    """The entries 0 to `count`. One process writes it."""

    def __init__(self, path: Path, count: int) -> None:
        """Opens or makes it, for `count` instances or more. Raises TorporError if it is damaged."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            header = _HEADER.pack(_MAGIC, _VERSION, _RECORD.size)
            if size == 0:
                file.write(header)
                file.flush()
            elif file.read(_HEADER.size) != header or (size - _HEADER.size) % _RECORD.size:
                raise TorporError(f"{path}: not a ledger of this version: use another --out")
            size = max(size, _HEADER.size + count * _RECORD.size)
            try:
                # A hole in a mapped file on a full disk would be a SIGBUS.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise TorporError(f"{path}: no room for {size} bytes: {error.strerror}") from error
            self._map = mmap.mmap(file.fileno(), size)
        self.count = (size - _HEADER.size) // _RECORD.size

    def entry(self, index: int) -> Entry:
        """What is known of an instance."""
        return Entry(*_RECORD.unpack_from(self._map, self._offset(index)))

    def created(self, index: int, uuid: str) -> None:
        """The server has made it."""
        _RECORD.pack_into(self._map, self._offset(index), UUID(uuid).bytes, 0, 0, 0, 0)

    def write(self, index: int, entry: Entry) -> None:
        """Notes what is known of an instance now."""
        words = (entry.uuid, entry.durable, entry.answered, entry.asked, entry.at_ms)
        _RECORD.pack_into(self._map, self._offset(index), *words)

    def answered_in_all(self) -> int:
        """How many instances have answered."""
        return sum(1 for index in range(self.count) if self.entry(index).answered)

    def close(self) -> None:
        """Writes it back to the disk."""
        self._map.flush()
        self._map.close()

    def _offset(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return _HEADER.size + index * _RECORD.size

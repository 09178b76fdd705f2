"""Which instance each VM process is, written down where no VM process can change it.

A process that its guest has taken over says what it likes. So the next torpord believes it only
that it is the instance which this one gave to it last, and no instance is ever two processes'.

The file is an array of records; nothing is synced, since it is of use only as long as the processes
live. It exists in full size before it is needed, so that a full disk keeps nobody from a wake.

    offset  bytes
    0       8      the name of the process's socket
    8       16     uuid of the instance
             both zeros: a free record
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

_NAME_BYTES = 8
_RECORD_BYTES = _NAME_BYTES + 16
_ALLOCATED_BYTES = 8192 * _RECORD_BYTES
_FREE = bytes(_RECORD_BYTES)


class Assignments:
    """Of all VM processes of a data directory; the lock of that makes its torpord the only one."""

    def __init__(self, path: Path) -> None:
        """Reads what an earlier torpord wrote. Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # a full disk: it grows when there is room
            os.posix_fallocate(self._file, 0, _ALLOCATED_BYTES)
        self._slots: dict[bytes, int] = {}
        """Where their records are, by the names of sockets."""
        self._instances: dict[bytes, bytes] = {}
        """Uuids, by those names."""
        self._sockets: dict[bytes, bytes] = {}
        """Those names, by uuids."""
        self._free: list[int] = []
        content = path.read_bytes()
        self._end = len(content) // _RECORD_BYTES
        for slot in reversed(range(self._end)):
            record = content[slot * _RECORD_BYTES : (slot + 1) * _RECORD_BYTES]
            if record == _FREE:
                self._free.append(slot)
            else:
                self._enter(slot, record[:_NAME_BYTES], record[_NAME_BYTES:])

    def close(self) -> None:
        """Leaves it to the next torpord."""
        os.close(self._file)

    def assign(self, socket: Path, instance: str) -> None:
        """Whoever has that socket is this instance from now on, and nobody else. Raises OSError."""
        name, uuid = _name_of(socket), UUID(instance).bytes
        for former in (name, self._sockets.get(uuid)):
            if former is not None:
                self._clear(former)
        slot = self._free.pop() if self._free else self._end
        try:
            os.pwrite(self._file, name + uuid, slot * _RECORD_BYTES)
        except OSError:
            self._free.append(slot)
            raise
        finally:
            self._end = max(self._end, slot + 1)
        self._enter(slot, name, uuid)

    def clear(self, socket: Path) -> None:
        """Whoever has that socket is no instance any more. Raises OSError."""
        self._clear(_name_of(socket))

    def keep(self, sockets: Iterable[Path]) -> None:
        """Forgets all but those: the others are dead. Raises OSError."""
        kept = {socket.stem for socket in sockets}
        for name in [name for name in self._slots if name.hex() not in kept]:
            self._clear(name)

    def of(self, socket: Path) -> str | None:
        """The instance that whoever has that socket is."""
        try:
            uuid = self._instances.get(_name_of(socket))
        except ValueError:  # no socket of ours
            return None
        return None if uuid is None else str(UUID(bytes=uuid))

    def _enter(self, slot: int, name: bytes, uuid: bytes) -> None:
        self._slots[name] = slot
        self._instances[name] = uuid
        self._sockets[uuid] = name

    def _clear(self, name: bytes) -> None:
        slot = self._slots.get(name)
        if slot is not None:
            os.pwrite(self._file, _FREE, slot * _RECORD_BYTES)
            del self._slots[name]
            self._sockets.pop(self._instances.pop(name), None)
            self._free.append(slot)


def _name_of(socket: Path) -> bytes:
    name = bytes.fromhex(socket.stem)
    if len(name) != _NAME_BYTES:
        raise ValueError(f"{socket.name}: not the name of a VM process's socket")
    return name

"""Datagrams with a JSON object and descriptors: to VM processes (docs/control-socket.md) and to
the proxy (docs/proxy-socket.md).
"""

import struct
from dataclasses import dataclass
from typing import TypeVar

_HEADER = struct.Struct("<4sHHII")
HEADER_BYTES = _HEADER.size
Datagram = TypeVar("Datagram", bytes, memoryview)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What one protocol's datagrams begin with."""

    magic: bytes
    version: int

    def wrap(self, body: bytes, descriptors: int) -> bytes:
        """A datagram around `body`, with which so many descriptors go."""
        return _HEADER.pack(self.magic, self.version, descriptors, len(body), 0) + body

    def unwrap(self, datagram: Datagram, descriptors: int) -> Datagram:
        """The body of a datagram that came with so many descriptors. Raises ValueError."""
        if len(datagram) < HEADER_BYTES:
            raise ValueError(f"a message of {len(datagram)} bytes")
        magic, version, count, length, zero = _HEADER.unpack_from(datagram)
        if magic != self.magic or version != self.version:
            raise ValueError(
                f"version {version} of the protocol; this program speaks {self.version}"
            )
        if length != len(datagram) - HEADER_BYTES or count != descriptors or zero != 0:
            raise ValueError("a message that is not what its header says")
        return datagram[HEADER_BYTES:]

"""What has to be known here of a snapshot's file; all is in crates/vmm/src/snapshot/mod.rs.

The digest of a file is the SHA-256 of its head, which is all but the late chunks at its end: the
head has a digest of each of those. Of anything else it is that of all of it.
"""

import hashlib
import struct
from collections.abc import Callable
from itertools import islice

VERSION = 3
HEADER_BYTES = 52
_MAGIC = b"TORPORSN"
_HEADER = struct.Struct("<8sIIQQIIIII")
_ENTRY_BYTES = 20
_LATE_ENTRY = struct.Struct("<IIIII32s")

Reader = Callable[[int, int], bytes]
"""So many bytes of a file from a place on, or what there is of them."""


def head_bytes(start: bytes, size_bytes: int) -> int:
    """How long the head of a file is that begins with `start`, at least HEADER_BYTES if it can."""
    if len(start) < HEADER_BYTES or not start.startswith(_MAGIC):
        return size_bytes
    _, version, _, _, head, *_ = _HEADER.unpack_from(start)
    return min(head, size_bytes) if version == VERSION else size_bytes


def digest_of(read: Reader, size_bytes: int) -> bytes:
    """The digest of a file."""
    return hashlib.sha256(read(0, head_bytes(read(0, HEADER_BYTES), size_bytes))).digest()


def is_whole(read: Reader, size_bytes: int, digest: bytes) -> bool:
    """Whether a file is the one of that digest, late chunks included."""
    head = read(0, head_bytes(read(0, HEADER_BYTES), size_bytes))
    if hashlib.sha256(head).digest() != digest:
        return False
    at = len(head)
    if at < size_bytes:
        *_, chunks, late, metadata, _, _ = _HEADER.unpack_from(head)
        index = head[HEADER_BYTES + metadata + chunks * _ENTRY_BYTES :]
        for _, _, length, _, _, wanted in islice(_LATE_ENTRY.iter_unpack(_whole(index)), late):
            if hashlib.sha256(read(at, length)).digest() != wanted:
                return False
            at += length
    return at == size_bytes


def _whole(index: bytes) -> bytes:
    """What is behind the index is not as long as entries are."""
    return index[: len(index) - len(index) % _LATE_ENTRY.size]

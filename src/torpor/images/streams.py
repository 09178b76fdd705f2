"""Decompression of untrusted streams in bounded memory, with the digest taken on the way."""

import bz2
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import zstandard

from torpor.images.errors import BadArchiveError
from torpor.images.limits import Budget

CHUNK_BYTES = 256 << 10


class Reader(Protocol):
    """Anything that bytes can be read from in order."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none only at the end."""
        ...


class HashingReader:
    """Passes bytes through and knows the SHA-256 of what went through, if it is to."""

    def __init__(self, source: Reader, *, hashing: bool = True) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self._hashing = hashing

    def read(self, size: int, /) -> bytes:
        """Reads from the source."""
        data = self._source.read(size)
        if self._hashing:
            self._hash.update(data)
        return data

    def drain(self) -> None:
        """Reads to the end."""
        while self.read(CHUNK_BYTES):
            pass

    @property
    def digest(self) -> str:
        """Of all that has been read."""
        return f"sha256:{self._hash.hexdigest()}"


class BudgetReader:
    """Passes bytes through and counts them against a budget."""

    def __init__(self, source: Reader, budget: Budget, origin: str) -> None:
        self._source = source
        self._budget = budget
        self._origin = origin

    def read(self, size: int, /) -> bytes:
        """Reads from the source. Raises LimitExceededError."""
        data = self._source.read(size)
        self._budget.take_bytes(len(data), self._origin)
        return data


class _ChunkReader:
    """Reads from an iterator of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


class _Decompressor(Protocol):
    """What bz2 and lzma decompressor objects have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _gunzip(source: Reader) -> Iterator[bytes]:
    data = source.read(CHUNK_BYTES)
    while data:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            yield member.decompress(data, CHUNK_BYTES)
            data = member.unconsumed_tail or member.unused_data
            if not member.eof and not data:
                data = source.read(CHUNK_BYTES)
                if not data:
                    raise EOFError
        data = data or source.read(CHUNK_BYTES)
        if data.strip(b"\0") == b"":  # gzip ignores zeros that pad the end, and so do tapes
            data = b""


def _decompress_members(make: Callable[[], _Decompressor], source: Reader) -> Iterator[bytes]:
    data = source.read(CHUNK_BYTES)
    while data:
        member = make()
        while not member.eof:
            if member.needs_input and not data:
                data = source.read(CHUNK_BYTES)
                if not data:
                    raise EOFError
            try:
                piece = member.decompress(data, CHUNK_BYTES)
            except OSError as error:  # bz2's way to say that its input is damaged
                raise zlib.error(str(error)) from error
            yield piece
            data = b""
        data = member.unused_data or source.read(CHUNK_BYTES)


def _unzstd(source: Reader) -> Iterator[bytes]:
    # A window larger than 128 MiB needs memory that no layer is worth. Four bytes can stand for
    # 128 KiB and the output of one call can't be bounded, so the input of one is.
    slice_bytes = 1 << 10
    decompressor = zstandard.ZstdDecompressor(max_window_size=128 << 20)
    data = source.read(CHUNK_BYTES)
    while data:
        frame = decompressor.decompressobj()
        while not frame.eof:
            if not data:
                data = source.read(CHUNK_BYTES)
                if not data:
                    raise EOFError
            piece, data = data[:slice_bytes], data[slice_bytes:]
            yield frame.decompress(piece)
        data = frame.unused_data + data or source.read(CHUNK_BYTES)


_MAGICS: tuple[tuple[bytes, Callable[[Reader], Iterator[bytes]]], ...] = (
    (b"\x1f\x8b", _gunzip),
    (b"\x28\xb5\x2f\xfd", _unzstd),
    (b"BZh", lambda source: _decompress_members(bz2.BZ2Decompressor, source)),
    (
        b"\xfd7zXZ\0",
        lambda source: _decompress_members(
            lambda: lzma.LZMADecompressor(memlimit=128 << 20), source
        ),
    ),
)


def _guarded(chunks: Iterator[bytes], origin: str) -> Iterator[bytes]:
    try:
        yield from chunks
    except EOFError:
        raise BadArchiveError(f"{origin}: the compressed data ends early (truncated?)") from None
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise BadArchiveError(f"{origin}: the compressed data is damaged: {error}") from None


class _Prefixed:
    """A source with the bytes put back that were looked at."""

    def __init__(self, prefix: bytes, source: BinaryIO | Reader) -> None:
        self._prefix = prefix
        self._source = source

    def read(self, size: int, /) -> bytes:
        if self._prefix:
            data, self._prefix = self._prefix[:size], self._prefix[size:]
            return data
        return self._source.read(size)


def decompressed(source: Reader, origin: str) -> Reader:
    """The stream without its compression, which its first bytes name: gzip, zstd, bzip2, xz, none.

    Reading it raises BadArchiveError where the data is damaged or ends early.
    """
    head = b""
    while len(head) < 8 and (more := source.read(8 - len(head))):
        head += more
    whole = _Prefixed(head, source)
    for magic, open_stream in _MAGICS:
        if head.startswith(magic):
            return _ChunkReader(_guarded(open_stream(whole), origin))
    return whole

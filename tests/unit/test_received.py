"""What is taken of the files that VM processes make: they may be hostile."""

import fcntl
import os

import pytest

from torpor.controller.errors import ItemError
from torpor.vmhost.vm import CONSTANT, HELD_MAX_BYTES, received


def made(size: int, seals: int = CONSTANT, *, holes: bool = False) -> int:
    descriptor = os.memfd_create("made", os.MFD_ALLOW_SEALING)
    if holes:
        os.truncate(descriptor, size)
    else:
        os.write(descriptor, b"x" * size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@pytest.mark.parametrize("size", [0, 1, HELD_MAX_BYTES, HELD_MAX_BYTES + 1])
def test_a_sealed_file_is_taken(size: int) -> None:
    """A small one is read, and its descriptor closed; of a large one its memory is kept."""
    descriptor = made(size)
    content = received(descriptor)
    assert content.size_bytes == size
    assert (content.data is None) == (size > HELD_MAX_BYTES)
    assert content.read() == b"x" * size
    if content.data is not None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    del content
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_what_can_still_change_is_refused() -> None:
    for seals in (0, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW):
        with pytest.raises(ItemError, match="can still change"):
            received(made(5, seals))


def test_what_is_no_whole_file_is_refused() -> None:
    with pytest.raises(ItemError, match="with holes"):
        received(made(1 << 20, holes=True))
    reading, writing = os.pipe()
    with pytest.raises(ItemError, match="with holes"):
        received(reading)
    os.close(writing)

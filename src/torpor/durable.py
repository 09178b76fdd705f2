"""Files that survive a power cut."""

import os
import secrets
from pathlib import Path


def write_durably(
    path: Path, *pieces: bytes, mode: int = 0o600, temporary: Path | None = None
) -> None:
    """Make a file, or replace it, all at once; when this returns it survives a power cut.

    `temporary`, on the same file system, is where it is written first: by default beside it. What
    fails leaves what was there.
    """
    new = temporary or path.parent / f".new-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

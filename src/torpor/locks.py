"""Which process has something: it holds a lock on a file that has its number in it.

A flock ends with its process, however that dies, so nobody waits for a file that was left behind.
"""

import fcntl
from pathlib import Path
from typing import TextIO

TORPORD = "run/torpord.lock"
SUPERVISOR = "run/supervisor.pid"
"""In a data directory: who serves it, and who starts that again."""


class HeldError(Exception):
    """Another process has it: `pid`, or None if it has not said yet."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(f"process {pid or 'unknown'}")
        self.pid = pid


def claim(path: Path) -> TextIO:
    """The file, held by whoever has it open: this process, and those that it hands it to.

    Raises HeldError. The holder's number is still to be written by `sign`.
    """
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise HeldError(_signed(path)) from None
    except BaseException:
        lock.close()
        raise
    return lock


def sign(lock: TextIO, pid: int) -> None:
    """Writes down who has it."""
    lock.truncate(0)
    lock.write(f"{pid}\n")
    lock.flush()


def holder(path: Path) -> int | None:
    """The process that has it, or None."""
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _signed(path)
    return None


def _signed(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except ValueError:
        return None

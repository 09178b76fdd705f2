"""The server's log: standard error of its parts, each line behind the time."""

import os
import sys
import time


def note(text: str) -> None:
    """Writes a line."""
    if sys.stderr is None:
        return
    stamp = "" if _is_journal() else time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime())
    # In one piece, as others write there too.
    sys.stderr.write(f"{stamp}{text}\n")
    sys.stderr.flush()


def _is_journal() -> bool:
    """Whether systemd's journal reads it (systemd.exec(5)), which has times by itself."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"

"""Where Torpor keeps its data: `--data`, else TORPOR_DATA, else the user's default directory."""

import os
from pathlib import Path

from torpor.errors import TorporError

SYSTEM_DATA_DIR = Path("/var/lib/torpor")


def data_dir(option: str | None) -> Path:
    """The data directory, absolute and created with mode 0700 if it was missing.

    `option` is the value of `--data`. Raises TorporError if the directory cannot be made or used.
    """
    path = chosen_data_dir(option)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise TorporError(
            f"cannot make the data directory {path}: {error.strerror}: "
            "name another with --data or TORPOR_DATA"
        ) from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise TorporError(
            f"no permission for the data directory {path}: name another with --data or TORPOR_DATA"
        )
    return path


def chosen_data_dir(option: str | None) -> Path:
    """The data directory, absolute, whether it is there or not."""
    named = option or os.environ.get("TORPOR_DATA")
    if named:
        return Path(named).absolute()
    if os.geteuid() == 0:
        return SYSTEM_DATA_DIR
    xdg = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification: relative paths in these variables are invalid and ignored.
    base = Path(xdg) if xdg.startswith("/") else Path.home() / ".local" / "share"
    return base / "torpor"

"""Finding the programs that came in the same wheel."""

import os
import sys
from pathlib import Path

from torpor.errors import TorporError


def find_binary(name: str) -> Path:
    """The installed program `name`: beside the running command, else where pip puts scripts."""
    beside = [Path(sys.argv[0]).absolute().parent, Path(sys.executable).parent]
    for directory in beside:
        if os.access(directory / name, os.X_OK):
            return directory / name
    import sysconfig  # slow to import and hardly ever needed

    for scheme in (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")):
        candidate = Path(sysconfig.get_path("scripts", scheme)) / name
        if os.access(candidate, os.X_OK):
            return candidate
    raise TorporError(f"the program {name} is not installed beside torpor: install the wheel again")

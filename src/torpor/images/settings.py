"""The `[images]` table of the configuration file, and the variables that beat it."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torpor.images.errors import ImageError
from torpor.images.limits import Limits

MIRROR_VARIABLE = "TORPOR_REGISTRY_MIRROR"


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """What can be set about images."""

    mirror: str = ""
    """Registry that is asked before docker.io: [http://]HOST[:PORT][/PREFIX]."""
    stall_s: float = 60.0
    """How long a registry may send nothing before it is given up."""
    limits: Limits = field(default_factory=Limits)


def load_settings(data_dir: Path, env: Mapping[str, str] = os.environ) -> ImageSettings:
    """Reads the settings of a data directory. Raises ImageError naming a wrong key or value."""
    path = data_dir / "config.toml"
    try:
        with path.open("rb") as file:
            table: Any = tomllib.load(file).get("images", {})
    except FileNotFoundError:
        table = {}
    except tomllib.TOMLDecodeError as error:
        raise ImageError(f"{path}: {error}") from error
    if not isinstance(table, dict):
        raise ImageError(f"{path}: [images] must be a table")
    wanted: dict[str, type | tuple[type, ...]] = {
        "mirror": str,
        "stall_s": (int, float),
        "max_bytes": int,
        "max_inodes": int,
    }
    for key, value in table.items():
        if key not in wanted:
            known = ", ".join(wanted)
            raise ImageError(f"{path}: [images] has no setting {key!r}; it has {known}")
        positive = isinstance(value, str) or (isinstance(value, int | float) and value > 0)
        if not isinstance(value, wanted[key]) or isinstance(value, bool) or not positive:
            raise ImageError(f"{path}: [images] {key} = {value!r} is not what it must be")
    limits = Limits()
    return ImageSettings(
        mirror=env.get(MIRROR_VARIABLE) or table.get("mirror", ""),
        stall_s=float(table.get("stall_s", 60.0)),
        limits=Limits(
            max_bytes=table.get("max_bytes", limits.max_bytes),
            max_inodes=table.get("max_inodes", limits.max_inodes),
        ),
    )

"""Images: Dockerfiles, OCI images and archives become EROFS files that VMs boot from.

Importing this package is cheap: whoever only starts VMs needs `resolve` and nothing heavier.
"""

from pathlib import Path

from torpor.errors import ImageNotFoundError
from torpor.images.config import Healthcheck, ImageConfig
from torpor.images.errors import ImageError
from torpor.images.records import ResolvedImage
from torpor.images.store import ImageStore

__all__ = [
    "Healthcheck",
    "ImageConfig",
    "ImageError",
    "ImageNotFoundError",
    "ImageStore",
    "ResolvedImage",
    "resolve",
]


def resolve(name: str, data_dir: Path) -> ResolvedImage:
    """Finds an image by name, tag, digest or digest prefix in the store of a data directory.

    Raises ImageNotFoundError, or another ImageError where the name or the store is damaged.
    """
    return ImageStore(data_dir).resolve(name)

"""Making EROFS images with mkfs.erofs."""

import os
import subprocess
from pathlib import Path

from torpor.errors import PackError

# One identity for all images: what distinguishes them is their content.
_FS_UUID = "00000000-0000-4000-8000-746f72706f72"
# mkfs.erofs writes the time of the run into the superblock unless told otherwise, and clamps file
# times to this value. It compares without a sign, so that times before 1970 are the latest there
# are; this is two seconds before 1970, which leaves all but the last of those as they are. -1 is
# no value to it.
_BUILD_TIME_S = (1 << 64) - 2


def make_erofs(directory: Path, image: Path) -> None:
    """Pack `directory` into the EROFS file `image`: uncompressed, no inline data, reproducible.

    File contents then lie page-aligned in the image and can be mapped as they are. Owners, modes,
    times (1969's last second becomes the one before) and extended attributes are kept. `image` is
    overwritten; on failure PackError is raised and what `image` holds is undefined.
    """
    try:
        done = subprocess.run(
            ["mkfs.erofs", "--quiet", "-Enoinline_data", f"-U{_FS_UUID}", image, directory],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SOURCE_DATE_EPOCH": str(_BUILD_TIME_S)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise PackError("mkfs.erofs is missing: install the package erofs-utils") from error
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in said if "<E>" in line), said[-1] if said else "no message")
        raise PackError(f"mkfs.erofs could not pack {directory}: {reason}")


def settle_erofs(image: Path) -> None:
    """Have a finished image on disk, and out of the host's cache.

    VMs ask for it in large pages; what was just written or hashed is there in small ones, and would
    stay so as long as it is used, at a fault for each.
    """
    with image.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

"""Command line of the root file system builder; the package says what it does."""

import argparse
import subprocess
import sys
import time

from tests.rootfs.build import make_root, root_image
from tests.rootfs.fetch import REPOSITORY, bun_integrity
from tests.rootfs.lock import write_lock
from tests.rootfs.recipes import RECIPES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rootfs")
    parser.add_argument("names", nargs="*", choices=[[], *RECIPES], metavar="NAME")
    parser.add_argument("--lock", action="store_true", help="renew lock.json instead")
    arguments = parser.parse_args()
    if arguments.lock:
        write_lock(bun_integrity())
        return 0
    subprocess.run([REPOSITORY / "scripts" / "system-packages", "build", "test"], check=True)
    for name in arguments.names or RECIPES:
        began = time.monotonic()
        make_root(name)
        size_mb = root_image(name).stat().st_size / 1e6
        print(f"rootfs: {name:9} {size_mb:6.1f} MB  {time.monotonic() - began:5.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

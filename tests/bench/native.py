"""Running programs on this machine's own kernel, in root directories that are set up once."""

import os
import subprocess
import sys
from pathlib import Path

from tests.rootfs.build import make_root

_IN_NAMESPACE = "TORPOR_BENCH_NAMESPACE"


def enter_mount_namespace(module: str) -> None:
    """Start `python -m MODULE`, this program, again in a mount namespace that ends with it."""
    if _IN_NAMESPACE in os.environ:
        return
    os.environ[_IN_NAMESPACE] = "1"
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    os.execvp("unshare", ["unshare", "--mount", *as_root, *command])


def native_root(name: str, directory: Path | None = None) -> list[str | Path]:
    """The words before a command that run it natively in root file system `name`.

    An overlay keeps its directory clean; /proc and /dev are there. `directory` is taken in place
    of the root file system of that name.
    """
    base = Path("/mnt")
    if not (base / ".bench").exists():
        _mount("-t", "tmpfs", "bench", base)
        (base / ".bench").touch()
    merged = base / name / "root"
    if not merged.exists():
        for part in ("root", "upper", "work"):
            (base / name / part).mkdir(parents=True)
        layers = f"lowerdir={directory or make_root(name)},upperdir={base / name}/upper"
        _mount("-t", "overlay", "-o", f"{layers},workdir={base / name}/work", "bench", merged)
        for part in ("proc", "dev", "tmp"):
            (merged / part).mkdir(exist_ok=True)
        _mount("-t", "proc", "proc", merged / "proc")
        _mount("--rbind", "/dev", merged / "dev")
    return ["chroot", merged]


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)

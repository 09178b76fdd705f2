"""Running a program in a microVM, and natively from the same root directory, for comparison."""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.rootfs.build import make_root, root_image

REPOSITORY = Path(__file__).resolve().parents[1]
TORPOR = REPOSITORY / ".venv" / "bin" / "torpor"
DEFAULT_TIMEOUT_S = 120.0

# What `docker run` gives a program, and so `torpor vm run` too.
DEFAULT_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended. `status` is as a shell shows it: 128 + N for signal N."""

    status: int
    stdout: bytes
    stderr: bytes

    def __str__(self) -> str:
        return (
            f"exit status {self.status}\n--- stdout\n{self.stdout.decode(errors='replace')}"
            f"--- stderr\n{self.stderr.decode(errors='replace')}"
        )


def run_command(
    command: list[str | Path],
    *,
    stdin: bytes = b"",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    env: dict[str, str] | None = None,
) -> Result:
    """Run `command` on this machine. A command that takes too long fails with TimeoutError."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
        start_new_session=True,
    )  # fmt: skip
    try:
        stdout, stderr = process.communicate(stdin, timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        partial = Result(-1, stdout, stderr)
        raise TimeoutError(f"{command} took longer than {timeout_s} s\n{partial}") from None
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Result(status, stdout, stderr)


def vm_run(
    root: str,
    *argv: str,
    options: tuple[str, ...] = (),
    stdin: bytes | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Result:
    """Run `argv` in a microVM with the image of root file system `root`; stdin only if given."""
    interactive = () if stdin is None else ("-i",)
    command: list[str | Path] = [
        TORPOR,
        "vm",
        "run",
        *interactive,
        *options,
        root_image(root),
        *argv,
    ]
    return run_command(command, stdin=stdin or b"", timeout_s=timeout_s)


def native_command(root: str, *argv: str, alone: bool = False) -> list[str | Path]:
    """The command that runs `argv` on this machine's kernel, under chroot(2).

    As in a VM, what it writes is gone afterwards: an overlay on tmpfs lies over the directory.
    `alone` adds what else a VM keeps to itself: processes, System V IPC and a network of loopback.
    """
    lower = shlex.quote(str(make_root(root)))
    setup = f"""
        set -e
        {"ip link set lo up" if alone else ""}
        mount -t tmpfs -o mode=755 native /mnt
        mkdir /mnt/upper /mnt/work /mnt/root
        mount -t overlay native -o lowerdir={lower},upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
        mount -t proc proc /mnt/root/proc
        mount --rbind /dev /mnt/root/dev
        mount -t tmpfs -o mode=1777 tmp /mnt/root/tmp
        mount -t tmpfs -o mode=1777 shm /mnt/root/dev/shm
        cd /mnt/root
        ulimit -Sn 1024
        exec env -u PWD -u OLDPWD chroot . "$@"
    """
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    others = ["--pid", "--fork", "--kill-child", "--ipc", "--net"] if alone else []
    return ["unshare", "--mount", "--uts", *others, *as_root, "sh", "-c", setup, "native", *argv]


def run_native(
    root: str,
    *argv: str,
    stdin: bytes | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    alone: bool = False,
) -> Result:
    """Run `argv` on this machine's kernel from the root directory `root`."""
    command = native_command(root, *argv, alone=alone)
    return run_command(command, stdin=stdin or b"", timeout_s=timeout_s, env=DEFAULT_ENVIRONMENT)


@contextmanager
def small_disk(directory: Path, size_mb: int) -> Iterator[Path]:
    """A file system of that size at a directory that is made for it. Needs root."""
    directory.mkdir(mode=0o700)
    size = f"size={size_mb}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        # Lazily: what a failed test has left there may still be open.
        subprocess.run(["umount", "--lazy", directory], check=True)

"""Running the system tools that images are made with."""

import errno
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.images.errors import ImageError, RegistryUnreachableError, ToolMissingError

PACKAGES = {
    "buildah": "buildah",
    "skopeo": "skopeo",
    "mkfs.erofs": "erofs-utils",
    "mmdebstrap": "mmdebstrap",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "prlimit": "util-linux",
    "apt-config": "apt",
}
"""The Debian package of each tool."""

MAX_TAIL_CHARS = 8_000
_POLL_S = 0.5


def find_tool(name: str) -> str:
    """The path of a system tool. Raises ToolMissingError with the package to install."""
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    found = shutil.which(name, path=path)
    if found is None:
        package = PACKAGES.get(name, name)
        raise ToolMissingError(
            f"{name}: not installed; `apt-get install {package}` (or `make setup`) brings it"
        )
    return found


def require_root(what: str) -> None:
    """Raises ToolMissingError unless this process may give files any owner."""
    if os.geteuid() != 0:
        raise ToolMissingError(
            f"{what} needs root: owners and device nodes of the image have to be kept"
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """A tool that has ended. `output` is the end of what it wrote, both streams together."""

    status: int
    output: str


def run_tool(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    on_output: Callable[[str], None] | None = None,
    watch: Path | None = None,
    stall_s: float | None = None,
    max_file_bytes: int | None = None,
    cwd: Path | None = None,
    offline: bool = False,
) -> Finished:
    """Runs a tool to its end and returns its status; it dies with this process.

    What it mounts ends with it too: it has a mount namespace of its own where it is root.
    `on_output` sees each line as it comes. With `watch` and `stall_s`, a tool that neither writes
    a line nor makes the directory `watch` grow for so long is ended with RegistryUnreachableError.
    `max_file_bytes` bounds every file that it writes. `offline` needs root: there is no network but
    a loopback interface of its own.
    """
    command = [find_tool("setpriv"), "--pdeathsig", "KILL", "--"]
    if os.geteuid() == 0:
        command += [find_tool("unshare"), "--mount", *(["--net"] if offline else []), "--"]
    if max_file_bytes is not None:
        command += [find_tool("prlimit"), f"--fsize={max_file_bytes}", "--"]
    if offline:
        command += [sys.executable, "-P", "-m", "torpor.images.loopback"]
    command += [find_tool(arguments[0]), *arguments[1:]]
    process = subprocess.Popen(
        command,
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=cwd,
    )
    try:
        tail = _follow(process, on_output, watch, stall_s)
        return Finished(process.wait(), tail)
    finally:
        # The tool's own children too: it leads a session of its own.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None  # noqa: S101
        process.stdout.close()


def check_tool(arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
    """Runs a tool that is expected to succeed, and returns its output.

    Raises ImageError with the end of its output where it fails.
    """
    finished = run_tool(arguments, env=env)
    if finished.status != 0:
        raise_if_disk_full(finished)
        raise ImageError(
            f"{arguments[0]} failed with status {finished.status}: {finished.output.strip()}"
        )
    return finished.output


def raise_if_disk_full(finished: Finished) -> None:
    """Raises the OSError that a tool met, where it says that it met a full disk."""
    for code in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(code).lower() in finished.output.lower():
            raise OSError(code, os.strerror(code))


def _follow(
    process: subprocess.Popen[bytes],
    on_output: Callable[[str], None] | None,
    watch: Path | None,
    stall_s: float | None,
) -> str:
    assert process.stdout is not None  # noqa: S101
    tail = ""
    rest = b""
    progress = (-1, 0)
    progress_at_s = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ready = selector.select(_POLL_S)
            now_s = time.monotonic()
            if ready:
                data = os.read(process.stdout.fileno(), 65_536)
                *lines, rest = (rest + data).split(b"\n")
                if not data:
                    lines, rest = [rest] if rest else [], b""
                elif len(rest) > MAX_TAIL_CHARS:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    text = line.decode("utf-8", "replace").rstrip("\r")
                    tail = (tail + text + "\n")[-MAX_TAIL_CHARS:]
                    if on_output is not None:
                        on_output(text)
                if not data:
                    return tail
                progress_at_s = now_s
            elif process.poll() is not None:
                # It is gone; a grandchild may still hold the pipe open, and is not waited for.
                return tail
            if watch is not None and stall_s is not None:
                grown = _measure(watch)
                if grown != progress:
                    progress, progress_at_s = grown, now_s
                elif now_s - progress_at_s > stall_s:
                    raise RegistryUnreachableError(f"nothing arrived for {stall_s:g} s; given up")


def _measure(directory: Path) -> tuple[int, int]:
    total = count = 0
    todo = [os.fspath(directory)]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return count, total

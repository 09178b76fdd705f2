"""Starting VM processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from torpor.binaries import find_binary
from torpor.errors import TorporError
from torpor.sockets import bind_seqpacket
from torpor.vmprocess.client import VMProcess


@dataclass(frozen=True, slots=True)
class Launched:
    """A VM process that was just started."""

    process: VMProcess
    child: subprocess.Popen[bytes]
    path: Path
    """Of its socket, by which another controller finds it."""


async def launch(path: Path) -> Launched:
    """Start a VM process that can be told what to do at `path`, where nothing may be yet."""
    starting = asyncio.get_running_loop().run_in_executor(None, _start, path)
    try:
        child = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # A thread cannot be cancelled, and what it starts would run for ever.
        with contextlib.suppress(OSError, TorporError):
            _end(await starting, path)
        raise
    try:
        process = await VMProcess.connect(str(path))
    except BaseException:
        _end(child, path)
        raise
    return Launched(process, child, path)


def _start(path: Path) -> subprocess.Popen[bytes]:
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        with bind_seqpacket(path) as control:
            numbers = (control.fileno(), kvm)
            command = [
                str(find_binary("torpor-vmm")),
                "serve",
                f"--control-fd={numbers[0]}",
                f"--kvm-fd={numbers[1]}",
            ]
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=numbers, start_new_session=True
            )
    finally:
        os.close(kvm)


def _end(child: subprocess.Popen[bytes], path: Path) -> None:
    child.kill()
    child.wait()
    path.unlink(missing_ok=True)

"""Starting VM processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from torpor.binaries import find_binary
from torpor.vmprocess.client import VMProcess


@dataclass(frozen=True, slots=True)
class Launched:
    """A VM process that was just started."""

    process: VMProcess
    child: subprocess.Popen[bytes]
    path: Path
    """Of its socket, by which another controller finds it."""


def bind(path: Path) -> socket.socket:
    """Bind a control socket; a path may be longer than the 108 bytes of sun_path."""
    holder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        bound.bind(f"/proc/self/fd/{holder}/{path.name}")
    except BaseException:
        bound.close()
        raise
    finally:
        os.close(holder)
    return bound


async def launch(path: Path) -> Launched:
    """Start a VM process that can be told what to do at `path`, where nothing may be yet."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        with bind(path) as control:
            numbers = (control.fileno(), kvm)
            command = [
                str(find_binary("torpor-vmm")),
                "serve",
                f"--control-fd={numbers[0]}",
                f"--kvm-fd={numbers[1]}",
            ]
            child = await asyncio.to_thread(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=numbers,
                start_new_session=True,
            )
    finally:
        os.close(kvm)
    try:
        process = await VMProcess.connect(str(path))
    except BaseException:
        child.kill()
        child.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - quick, and pathlib's would be the same call
        raise
    return Launched(process, child, path)

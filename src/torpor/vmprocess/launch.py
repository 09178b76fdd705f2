"""Starting VM processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from torpor.binaries import find_binary
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

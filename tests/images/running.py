"""Running an image's server natively, and in a microVM, with its port on the loopback interface."""

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.harness import REPOSITORY, TORPOR
from tests.images.checks import Server
from torpor.bench.native import mounted
from torpor.images import ResolvedImage

PORT = 8080
START_TIMEOUT_S = 60


@contextmanager
def natively(image: ResolvedImage, scratch: Path) -> Iterator[Server]:
    """By chroot(2) into its image under an overlay in `scratch`; it listens on port 8080 itself."""
    with mounted(image, scratch) as root:
        log = scratch / "log"
        with log.open("wb") as output, subprocess.Popen(
            # A PID namespace, so that all that the program started ends with it.
            ["unshare", "--pid", "--fork", f"--root={root.path}",
             f"--wd={root.config.workdir}", *root.config.argv()],
            env=root.environment(),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                deadline_s = time.monotonic() + START_TIMEOUT_S
                while True:
                    try:
                        socket.create_connection(("127.0.0.1", PORT), 1).close()
                        break
                    except OSError:
                        if process.poll() is not None or time.monotonic() > deadline_s:
                            raise RuntimeError(f"does not listen: {log.read_text()}") from None
                        time.sleep(0.05)
                yield Server(PORT, root.set_instance)
            finally:
                # Not unshare's --kill-child, which a program that changes its user is free of.
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def in_vm(data: Path, name: str) -> Iterator[Server]:
    """An image in a microVM, port 8080 of which is published on a free port of this machine."""
    command: list[str | Path] = [TORPOR, "--data", data, "vm", "run", "-p"]
    command += [f"127.0.0.1:0:{PORT}", name]
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=REPOSITORY
        ) as process,
    ):
        try:
            yield Server(_wait_for_server(process, output))
        finally:
            process.kill()


def _wait_for_server(process: subprocess.Popen[bytes], output: IO[bytes]) -> int:
    """The published port, once the program in the microVM listens on its own."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        output.seek(0)
        published = re.search(rb"127\.0\.0\.1:(\d+)", output.read())
        if published and _is_kept_open(int(published[1])):
            return int(published[1])
        time.sleep(0.05)
    output.seek(0)
    raise RuntimeError(f"does not listen: {output.read().decode(errors='replace')}")


def _is_kept_open(port: int) -> bool:
    """Whether a connection is left open: without a listener in the guest it is reset at once."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.settimeout(0.5)
            return connection.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False

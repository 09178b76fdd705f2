"""The same program without a microVM: a plain process, or a container, on this machine's kernel.

Its root file system is the image itself under an overlay. All of it is in namespaces of the
benchmark's own, in which its port is free, and which end with it.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torpor.bench.report import WrongAnswerError
from torpor.errors import TorporError
from torpor.images import ImageConfig, ResolvedImage

START_TIMEOUT_S = 60.0
POLL_S = 0.0003
_INSIDE = "TORPOR_BENCH_NAMESPACES"
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
IDENTITY = "7a3d9b70-3f4e-4c1c-9a77-0d6e3f6b2b11"
"""The instance that a program outside of a microVM believes to be."""


def inside_namespaces() -> bool:
    """Whether `enter_namespaces` has been here."""
    return _INSIDE in os.environ


def enter_namespaces() -> None:
    """Starts this command again with mounts and a network of its own. Needs root."""
    if os.geteuid() != 0:
        raise TorporError("this benchmark mounts images for native runs: run it as root")
    os.environ[_INSIDE] = "1"
    again = [sys.executable, "-m", "torpor", *sys.argv[1:]]
    os.execvp("unshare", ["unshare", "--mount", "--net", *again])


def hide_second_hierarchy() -> None:
    """Leaves version 1 of cgroups alone in this mount namespace where there are both: crun refuses
    a machine with both, even when it is to use none.
    """
    unified = Path("/sys/fs/cgroup/unified")
    if unified.is_mount():
        subprocess.run(["umount", "-l", unified], check=True)


def loopback_up() -> None:
    """Brings up the loopback interface of a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


@dataclass(frozen=True, slots=True)
class Root:
    """An image's root file system, mounted so that it can be written to."""

    path: Path
    config: ImageConfig

    def set_instance(self, uuid: str) -> None:
        """Gives the program an identity, where one in a microVM finds its own."""
        content = json.dumps({"uuid": uuid, "name": "native"})
        (self.path / "run/torpor/instance").write_text(content)

    def command(self) -> list[str | Path]:
        """Starts its program by chroot(2) and exec(2) alone."""
        return [
            "unshare", f"--root={self.path}", f"--wd={self.config.workdir}", *self.config.argv()
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """What its program gets."""
        return dict(variable.split("=", 1) for variable in self.config.env)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory, in this process's own mount namespace."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        mount("-t", "tmpfs", "tmpfs", directory)
        yield Path(directory)
        subprocess.run(["umount", "-l", directory], check=True)


@contextmanager
def mounted(image: ResolvedImage, scratch: Path) -> Iterator[Root]:
    """The image under an overlay in `scratch`, which may not be on an overlay itself."""
    for name in ("lower", "upper", "work", "root"):
        (scratch / name).mkdir()
    root = scratch / "root"
    mount("-t", "erofs", "-o", "loop,ro", image.erofs, scratch / "lower")
    parts = (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work"))
    options = ",".join(f"{key}={scratch / name}" for key, name in parts)
    mount("-t", "overlay", "-o", options, "overlay", root)
    for name in ("proc", "dev", "run/torpor", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    mount("-t", "proc", "proc", root / "proc")
    mount("--rbind", "/dev", root / "dev")
    made = Root(root, image.config)
    made.set_instance(IDENTITY)
    try:
        yield made
    finally:
        subprocess.run(["umount", "-R", "-l", root], check=True)
        subprocess.run(["umount", "-l", scratch / "lower"], check=True)


def mount(*words: str | Path) -> None:
    """mount(8)."""
    subprocess.run(["mount", *words], check=True)


@contextmanager
def started(
    command: Sequence[str | Path], port: int, log: Path, env: dict[str, str] | None = None
) -> Iterator[tuple[int, float]]:
    """A server from exec to the block's end: its pid, and seconds until its first whole answer."""
    with log.open("wb") as output:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            while True:
                try:
                    ask(port)
                    break
                except ConnectionError:
                    late = time.perf_counter() - began_s > START_TIMEOUT_S
                    if process.poll() is not None or late:
                        raise TorporError(
                            f"{command[0]} did not start: {log.read_text()[-500:]}"
                        ) from None
                    time.sleep(POLL_S)
            yield process.pid, time.perf_counter() - began_s
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(port: int, path: str = "/") -> bytes:
    """The body of one answer on a new connection. Raises ConnectionError, WrongAnswerError."""
    with socket.create_connection(("127.0.0.1", port), START_TIMEOUT_S) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    status, _, body = answer.partition(b"\r\n\r\n")
    if not answer:
        raise ConnectionResetError("closed without an answer")
    if b" 200 " not in status.splitlines()[0]:
        raise WrongAnswerError(f"port {port} answered {status.splitlines()[0]!r}")
    return body


def oci_bundle(root: Root, directory: Path) -> None:
    """Writes a bundle that runs the root's program on the host's network (OCI runtime spec)."""
    directory.mkdir()
    process = {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": root.config.argv(),
        "env": list(root.config.env),
        "cwd": root.config.workdir,
    }
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},  # noqa: S108 -- the guest's
    ]
    namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
    document = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": str(root.path), "readonly": False},
        "hostname": "bench",
        "mounts": mounts,
        "linux": {"namespaces": namespaces},
    }
    (directory / "config.json").write_text(json.dumps(document))

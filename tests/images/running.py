"""Running an image's server natively, and in a microVM, with its port on the loopback interface."""

import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.harness import REPOSITORY, TORPOR
from tests.images.checks import Server
from torpor.images import ResolvedImage

PORT = 8080
START_TIMEOUT_S = 60
_FRAME = struct.Struct(">II")


@contextmanager
def natively(image: ResolvedImage, scratch: Path) -> Iterator[Server]:
    """By chroot(2) into its image under an overlay in `scratch`; it listens on port 8080 itself."""
    for name in ("lower", "upper", "work", "root"):
        (scratch / name).mkdir()
    root = scratch / "root"
    mount("-t", "erofs", "-o", "loop,ro", image.erofs, scratch / "lower")
    options = ",".join(
        f"{key}={scratch / name}"
        for key, name in (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work"))
    )
    mount("-t", "overlay", "-o", options, "overlay", root)
    for name in ("proc", "dev", "run/torpor", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    mount("-t", "proc", "proc", root / "proc")
    mount("--rbind", "/dev", root / "dev")

    def set_instance(uuid: str) -> None:
        (root / "run/torpor/instance").write_text(json.dumps({"uuid": uuid, "name": "x"}))

    set_instance("7a3d9b70-3f4e-4c1c-9a77-0d6e3f6b2b11")
    config = image.config
    log = scratch / "log"
    with log.open("wb") as output, subprocess.Popen(
        # A PID namespace, so that all that the program started ends with it.
        ["unshare", "--pid", "--fork", "--kill-child", f"--root={root}",
         f"--wd={config.workdir}", *config.argv()],
        env=dict(variable.split("=", 1) for variable in config.env),
        stdin=subprocess.DEVNULL, stdout=output, stderr=output,
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
            yield Server(PORT, set_instance)
        finally:
            process.kill()


def mount(*words: "str | Path") -> None:
    subprocess.run(["mount", *words], check=True)


def relay(directory: Path) -> Path:
    """Builds the relay program (Go, static) into a directory."""
    subprocess.run(
        ["go", "build", "-trimpath", "-o", directory / "relay", "main.go"],
        cwd=Path(__file__).parent / "relay",
        env={**os.environ, "CGO_ENABLED": "0"},
        check=True,
    )
    return directory / "relay"


@contextmanager
def in_vm(data: Path, name: str, argv: Sequence[str]) -> Iterator[Server]:
    """`argv` in a microVM of an image that has /relay, which carries connections over stdio."""
    command: list[str | Path] = [TORPOR, "--data", data, "vm", "run", "-i"]
    command += ["--entrypoint", "/relay", name, str(PORT), *argv]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
        ) as process,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        try:
            threading.Thread(target=_Carrier(process, listener).run, daemon=True).start()
            yield Server(listener.getsockname()[1])
        finally:
            process.kill()
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()


class _Carrier:
    """The host's end of the relay; tests/images/relay has the format."""

    def __init__(self, process: subprocess.Popen[bytes], listener: socket.socket) -> None:
        self._process = process
        self._listener = listener
        self._sending = threading.Lock()
        self._connections: dict[int, socket.socket] = {}

    def run(self) -> None:
        """Accepts connections until the listener is closed."""
        threading.Thread(target=self._receive, daemon=True).start()
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                number = len(self._connections) + 1
                self._connections[number] = connection
                threading.Thread(target=self._carry, args=(number,), daemon=True).start()

    def _carry(self, number: int) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # the VM or its standard input is gone
            while True:
                data = self._connections[number].recv(16_384)
                with self._sending:
                    self._process.stdin.write(_FRAME.pack(number, len(data)) + data)
                    self._process.stdin.flush()
                if not data:
                    return

    def _receive(self) -> None:
        assert self._process.stdout is not None
        while head := self._process.stdout.read(_FRAME.size):
            number, length = _FRAME.unpack(head)
            with suppress(OSError):
                if length:
                    self._connections[number].sendall(self._process.stdout.read(length))
                else:
                    self._connections[number].shutdown(socket.SHUT_WR)
        # The VM has ended: nobody waits for its answers.
        for connection in self._connections.values():
            connection.close()

"""The floor for snapshots: the same program as a plain process, stopped, and what it changes."""

import http.client
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

from tests.bench.native import native_root
from tests.harness import DEFAULT_ENVIRONMENT

_PAGE = 4096
_PRESENT, _SHARED = 1 << 63, 1 << 61
_READY_WITHIN_S = 30.0


class PlainProcess:
    """An HTTP server on a port of this host."""

    def __init__(self, child: subprocess.Popen[bytes], port: int) -> None:
        self._child = child
        self._port = port

    def ask(self, count: int = 1) -> bytes:
        """The last answer to so many requests on a connection of their own."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_READY_WITHIN_S)
        try:
            for _ in range(count):
                connection.request("GET", "/")
                answer = connection.getresponse().read()
            return answer
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Whether the program listens."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def continued(self) -> float:
        """Stop it, and let it go on with a request; seconds to the answer."""
        self._child.send_signal(signal.SIGSTOP)
        time.sleep(0.01)
        began = time.perf_counter()
        self._child.send_signal(signal.SIGCONT)
        self.ask()
        return time.perf_counter() - began

    def pages(self) -> dict[int, bytes]:
        """Its private writable pages, by address."""
        self._child.send_signal(signal.SIGSTOP)
        directory = Path(f"/proc/{self._child.pid}")
        found = {}
        with (
            (directory / "pagemap").open("rb", 0) as map_,
            (directory / "mem").open("rb", 0) as memory,
        ):
            for line in (directory / "maps").read_text().splitlines():
                if not (area := re.match(r"([0-9a-f]+)-([0-9a-f]+) .w.p ", line)):
                    continue
                start, end = (int(part, 16) for part in area.groups())
                for address in _private(map_.fileno(), start, end):
                    memory.seek(address)
                    found[address] = memory.read(_PAGE)
        self._child.send_signal(signal.SIGCONT)
        return found


def _private(pagemap: int, start: int, end: int) -> Iterator[int]:
    piece = 1 << 20
    for first in range(start // _PAGE, end // _PAGE, piece):
        count = min(piece, end // _PAGE - first)
        entries = os.pread(pagemap, count * 8, first * 8)
        if entries.count(0) == len(entries):
            continue
        for index, entry in enumerate(memoryview(entries).cast("Q")):
            if entry & _PRESENT and not entry & _SHARED:
                yield (first + index) * _PAGE


def delta_bytes(before: dict[int, bytes], after: dict[int, bytes]) -> int:
    """What the pages differ by, XORed and compressed as a delta would be."""
    zeros = bytes(_PAGE)
    changed = bytearray()
    for address, page in after.items():
        base = before.get(address, zeros)
        if page != base:
            difference = int.from_bytes(page, "little") ^ int.from_bytes(base, "little")
            changed += difference.to_bytes(_PAGE, "little")
    return len(zstandard.compress(bytes(changed)))


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def plain_process(root: str, argv: list[str], port: int) -> Iterator[PlainProcess]:
    """Start a server natively in the root file system `root`, and wait until it listens."""
    prefix = native_root(root)
    child = subprocess.Popen(
        [*prefix, *argv],
        stdin=subprocess.DEVNULL,
        env=DEFAULT_ENVIRONMENT,
    )
    process = PlainProcess(child, port)
    try:
        deadline = time.monotonic() + _READY_WITHIN_S
        while not process.is_ready():
            if time.monotonic() > deadline or child.poll() is not None:
                raise TimeoutError(f"{argv[0]} did not get ready natively")
            time.sleep(0.01)
        yield process
    finally:
        child.kill()
        child.wait()

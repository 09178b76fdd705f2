"""`make bench-images`: throughput, memory and size of making images, and the time of a rebuild."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness import REPOSITORY, TORPOR
from torpor.bench import Bar, Report, WrongAnswerError, refuse_debug_build
from torpor.erofs import make_erofs
from torpor.images.store import ImageStore

TREE_BYTES = 1_000_000_000
EROFS_RUNS = 3


def file_sizes(total_bytes: int) -> Iterator[int]:
    """Sizes as an image with libraries and packages has them: mostly small, bytes in large ones."""
    left = total_bytes
    number = 0
    while left > 0:
        number += 1
        size = 2_000_000 if number % 25 == 0 else 300 + number * 7919 % 30_000
        yield min(size, left)
        left -= size


def write_tar(path: Path, total_bytes: int) -> int:
    """Writes a root file system of so many bytes in files; the number of files."""
    block = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(256)) * 250
    count = 0
    with tarfile.open(path, "w") as archive:
        for count, size in enumerate(file_sizes(total_bytes), 1):
            entry = tarfile.TarInfo(f"usr/lib/package-{count // 50}/file-{count}")
            entry.size = size
            offset = count % 1000
            archive.addfile(entry, io.BytesIO(block[offset : offset + size].ljust(size, b"x")))
    return count


class PeakMemory:
    """The most that a process and its descendants have resident together, sampled."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.bytes = 0

    def watch(self, done: threading.Event) -> None:
        """Samples until `done`."""
        while not done.wait(0.02):
            self.bytes = max(self.bytes, sum(map(resident_bytes, descendants(self._pid))))


def descendants(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        except OSError:
            continue
        found += map(int, children.split())
    return found


def resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def torpor(data: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [TORPOR, "--data", data, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process
        _, said = process.communicate()
        if process.returncode != 0:
            raise WrongAnswerError(f"torpor {' '.join(words)}: {said.decode(errors='replace')}")


def bench_conversion(report: Report, scratch: Path) -> None:
    """A 1 GB archive into the store, and a 1 GB directory into a file."""
    archive = scratch / "rootfs.tar"
    count = write_tar(archive, TREE_BYTES)
    data = scratch / "data"
    began_s = time.monotonic()
    done = threading.Event()
    with torpor(data, "image", "import", "--format", "rootfs", str(archive), "big") as process:
        memory = PeakMemory(process.pid)
        sampler = threading.Thread(target=memory.watch, args=(done,))
        sampler.start()
    took_s = time.monotonic() - began_s
    done.set()
    sampler.join()
    report.value("1 GB archive to image", TREE_BYTES / 1e6 / took_s, "MB/s")
    report.value("1 GB archive to image, memory", memory.bytes / 1e6, "MB", bar=Bar(200))
    image = ImageStore(data).inspect("big")
    if image.files_bytes != TREE_BYTES:
        raise WrongAnswerError(f"{image.files_bytes} bytes of files in the image")
    report.value(
        "image size to its files' sum, 1 GB", image.size_bytes / image.files_bytes, "ratio"
    )

    tree = scratch / "tree"
    with tarfile.open(archive) as opened:
        opened.extractall(tree, filter="tar")
    archive.unlink()
    speeds = []
    for _ in range(EROFS_RUNS):
        target = scratch / "tree.erofs"
        target.unlink(missing_ok=True)
        began_s = time.monotonic()
        make_erofs(tree, target)
        speeds.append(TREE_BYTES / 1e6 / (time.monotonic() - began_s))
    report.samples(
        f"1 GB directory of {count} files to EROFS", speeds, "MB/s", bar=Bar(150, at_least=True)
    )


def bench_rebuild(report: Report, scratch: Path) -> None:
    """`torpor build` of a small application with nothing changed since the last time."""
    data = scratch / "data"
    rootfs = scratch / "busybox.tar"
    busybox = Path(shutil.which("busybox") or "")
    with tarfile.open(rootfs, "w") as archive:
        archive.add(busybox, "bin/busybox")
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        archive.addfile(link)
    with torpor(data, "image", "import", "--format", "rootfs", str(rootfs), "base"):
        pass
    context = scratch / "context"
    context.mkdir()
    (context / "file").write_text("content")
    steps = "\n".join(f"RUN /bin/busybox touch /file-{n}" for n in range(8))
    (context / "Dockerfile").write_text(f'FROM base\n{steps}\nCOPY . /context\nCMD ["/bin/sh"]\n')
    times = []
    for number in range(11):
        began_s = time.monotonic()
        with torpor(data, "build", "-q", "-t", "app", str(context)):
            pass
        if number:
            times.append(time.monotonic() - began_s)
    report.samples("rebuild with nothing changed", times, "s", bar=Bar(2, statistic="max"))


def main() -> int:
    refuse_debug_build()
    report = Report("images")
    build = REPOSITORY / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as scratch:
        bench_conversion(report, Path(scratch))
        bench_rebuild(report, Path(scratch))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

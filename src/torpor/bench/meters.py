"""What a server costs: processor time and memory of its processes, disk of its data directory."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 512
"""Unit of st_blocks, whatever the file system's own block size is: stat(2)."""
TICKS_S = os.sysconf("SC_CLK_TCK")
NOT_INSTANCES = frozenset({"images", "cache"})
"""In a data directory: images, and what building them left behind."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process by its number and start time; the number alone may be given out again."""

    pid: int
    started_ticks: int
    name: str
    """The first 15 characters of its program's name."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The processes of one server."""

    torpord: Process | None
    proxy: Process | None
    vms: tuple[Process, ...]


def processes_of(data_dir: Path, torpord_pid: int | None) -> Parts:
    """The processes that carry the data directory in their environment, or descend from torpord."""
    marker = b"TORPOR_DATA=" + os.fsencode(data_dir)
    found: dict[int, Process] = {}
    parents: dict[int, int] = {}
    for pid in _pids():
        try:
            process, parent = _read(pid)
            marked = marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        if process.name.startswith("torpor") or pid == torpord_pid:
            parents[pid] = parent
            if marked or pid == torpord_pid or parent == torpord_pid:
                found[pid] = process
    proxies = [one for one in found.values() if one.name == "torpor-proxy"]
    vms = [one for one in found.values() if one.name == "torpor-vmm"]
    torpord = found.get(torpord_pid) if torpord_pid is not None else None
    return Parts(torpord, proxies[0] if proxies else None, tuple(vms))


def cpu_s(process: Process | None) -> float:
    """Processor time of a process and its ended children, guests included; 0 if it is gone."""
    if process is None:
        return 0.0
    try:
        fields = _fields(process.pid)
    except OSError:
        return 0.0
    if int(fields[19]) != process.started_ticks:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS_S


def spent_s(parts: Parts) -> dict[str, float]:
    """Processor time of a server so far, by part; ended VM processes are torpord's children."""
    ended_s = 0.0
    if parts.torpord is not None:
        with contextlib.suppress(OSError):
            ended_s = sum(map(int, _fields(parts.torpord.pid)[13:15])) / TICKS_S
    return {
        "torpord": cpu_s(parts.torpord) - ended_s,
        "proxy": cpu_s(parts.proxy),
        "VMs": sum(map(cpu_s, parts.vms)) + ended_s,
        "client": time.process_time(),
    }


def rss_bytes(process: Process | None) -> int:
    """Resident memory; 0 if it is gone."""
    if process is None:
        return 0
    try:
        resident = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(resident) * os.sysconf("SC_PAGE_SIZE")


def private_bytes(processes: Iterable[Process]) -> int:
    """Memory that is theirs alone: what ending them would give back."""
    total = 0
    for process in processes:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
    return total


def anonymous_bytes(processes: Iterable[Process]) -> int:
    """About the same, quickly: resident memory that no file stands behind."""
    pages = 0
    for process in processes:
        try:
            words = Path(f"/proc/{process.pid}/statm").read_text().split()
        except OSError:
            continue
        pages += int(words[1]) - int(words[2])
    return pages * os.sysconf("SC_PAGE_SIZE")


def host_used_bytes() -> int:
    """Memory of the whole machine that is in use and cannot be had back."""
    sizes = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    return sizes["MemTotal"] - sizes["MemAvailable"]


def disk_bytes(data_dir: Path) -> int:
    """Allocated blocks of all that a data directory holds besides images."""
    return sum(_allocated(entry) for entry in _entries(data_dir) if entry.name not in NOT_INSTANCES)


def store_bytes(data_dir: Path) -> dict[str, int]:
    """Allocated blocks by the directory's own entries: database, its log, blobs, logs."""
    return {entry.name: _allocated(entry) for entry in _entries(data_dir)}


def _allocated(entry: "os.DirEntry[str]") -> int:
    try:
        total = entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES
    except FileNotFoundError:  # a temporary file that is gone already
        return 0
    if entry.is_dir(follow_symlinks=False):
        total += sum(_allocated(inner) for inner in _entries(entry.path))
    return total


def _entries(directory: str | Path) -> "Iterator[os.DirEntry[str]]":
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except FileNotFoundError:
        return


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):  # noqa: PTH208 -- names alone are wanted
        if name.isdigit():
            yield int(name)


def _read(pid: int) -> tuple[Process, int]:
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    fields = _fields(pid)
    return Process(pid, int(fields[19]), name), int(fields[1])


def _fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, the state, on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()

"""A disk that remembers what was synced, so that a loss of power can be played at any moment.

Everything that the store does to files, SQLite's own through a VFS and blob files through `Disk`,
is appended to one journal. `lose_power` builds the files that a real disk might hold after the
first N operations: what was synced is there; of the rest each write is kept, dropped, or torn at a
sector, and each unsynced name is there or not.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from torpor.store import Content
from torpor.store.disk import Disk

SECTOR = 512


@dataclass(frozen=True, slots=True)
class Write:
    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """Content of a file."""

    path: str


@dataclass(frozen=True, slots=True)
class Rename:
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Unlink:
    path: str


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    path: str


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    path: str


Operation = Write | Truncate | Sync | Rename | Unlink | MakeDirectory | SyncDirectory


class RecordingVfs(apsw.VFS):
    """The system's VFS; writes, syncs and removals are noted in `journal`."""

    def __init__(self, name: str, journal: list[Operation]) -> None:
        self.journal = journal
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _RecordingFile(name, flags, self.journal)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        self.journal.append(Unlink(filename))
        if syncdir:
            self.journal.append(SyncDirectory(str(Path(filename).parent)))


class _RecordingFile(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int], journal: list[Operation]) -> None:
        self.path = name if isinstance(name, str) else name.filename()
        self.journal = journal
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        self.journal.append(Write(self.path, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        super().xTruncate(newsize)
        self.journal.append(Truncate(self.path, newsize))

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self.journal.append(Sync(self.path))


class RecordingDisk(Disk):
    """Real files, noted in `journal`. `forget` names a method whose effect is left out of it."""

    def __init__(self, journal: list[Operation], forget: str = "") -> None:
        self.journal = journal
        self.forget = forget

    def write_new(self, path: Path, content: Content) -> None:
        super().write_new(path, content)
        self.journal += [Write(str(path), 0, path.read_bytes()), Sync(str(path))]

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.journal.append(Rename(str(source), str(target)))

    def make_directory(self, path: Path) -> None:
        there = path.exists()
        if not there:
            self.journal.append(MakeDirectory(str(path)))
        super().make_directory(path)

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        if self.forget != "sync_directory":
            self.journal.append(SyncDirectory(str(path)))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.journal.append(Unlink(str(path)))


@dataclass(slots=True)
class _File:
    """An inode: what is on the disk for sure, and what was written since."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)

    def settle(self, choose: Callable[[Write | Truncate], list[Write | Truncate]]) -> None:
        for operation in self.pending:
            for part in choose(operation):
                _apply(self.durable, part)
        self.pending.clear()


class _Directory:
    """Names to files; changes are durable when the directory was synced."""

    def __init__(self) -> None:
        self.durable: dict[str, _File] = {}
        self.pending: list[tuple[str, _File | None]] = []
        self.now: dict[str, _File] = {}

    def set(self, name: str, file: _File | None) -> None:
        self.pending.append((name, file))
        if file is None:
            self.now.pop(name, None)
        else:
            self.now[name] = file

    def sync(self) -> None:
        for name, file in self.pending:
            if file is None:
                self.durable.pop(name, None)
            else:
                self.durable[name] = file
        self.pending.clear()


def lose_power(journal: list[Operation], root: Path, chance: random.Random) -> dict[str, bytes]:
    """Files, by path below `root`, that the disk may hold after the operations of `journal`."""
    directories: dict[str, _Directory] = {str(root): _Directory()}
    durable_directories = {str(root)}
    parents: dict[str, str] = {}

    def directory(path: str) -> _Directory:
        return directories.setdefault(str(Path(path).parent), _Directory())

    for operation in journal:
        match operation:
            case Write() | Truncate():
                there = directory(operation.path)
                name = Path(operation.path).name
                if name not in there.now:
                    there.set(name, _File())
                there.now[name].pending.append(operation)
            case Sync():
                there = directory(operation.path)
                name = Path(operation.path).name
                if name in there.now:
                    there.now[name].settle(lambda write: [write])
                    # SQLite's unix VFS syncs the directory with the first sync of a log it made.
                    new = name not in there.durable
                    if new and name.endswith(("-wal", "-journal")):
                        there.sync()
            case Rename():
                source = directory(operation.source)
                file = source.now[Path(operation.source).name]
                directory(operation.target).set(Path(operation.target).name, file)
                source.set(Path(operation.source).name, None)
            case Unlink():
                directory(operation.path).set(Path(operation.path).name, None)
            case MakeDirectory():
                directories.setdefault(operation.path, _Directory())
                parents[operation.path] = str(Path(operation.path).parent)
            case SyncDirectory():
                directories.setdefault(operation.path, _Directory()).sync()
                durable_directories |= {
                    made for made, parent in parents.items() if parent == operation.path
                }

    found: dict[str, bytes] = {}
    for path, there in directories.items():
        chain = [path, *map(str, Path(path).parents)]
        below = [each for each in chain if each == str(root) or each in parents]
        if any(each not in durable_directories and chance.random() < 0.5 for each in below):
            continue
        names = dict(there.durable)
        for name, changed in there.pending:
            if chance.random() < 0.5:
                continue
            if changed is None:
                names.pop(name, None)
            else:
                names[name] = changed
        for name, file in names.items():
            copy = _File(bytearray(file.durable), list(file.pending))
            chance.shuffle(copy.pending)
            copy.settle(lambda write: _perhaps(write, chance))
            found[str(Path(path, name).relative_to(root))] = bytes(copy.durable)
    return found


def _perhaps(operation: Write | Truncate, chance: random.Random) -> list[Write | Truncate]:
    kind = chance.random()
    if kind < 0.4:
        return []
    if kind < 0.8 or isinstance(operation, Truncate):
        return [operation]
    torn = chance.randrange(0, len(operation.data) + 1, SECTOR)
    if chance.random() < 0.5:
        return [Write(operation.path, operation.offset, operation.data[:torn])]
    return [Write(operation.path, operation.offset + torn, operation.data[torn:])]


def _apply(content: bytearray, operation: Write | Truncate) -> None:
    if isinstance(operation, Truncate):
        del content[operation.size :]
        return
    end = operation.offset + len(operation.data)
    if len(content) < operation.offset:
        content.extend(bytes(operation.offset - len(content)))
    content[operation.offset : end] = operation.data

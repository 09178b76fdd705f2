"""A strict reader of tar streams: ustar, pax and GNU long names, as image layers use them.

Why not the standard library's: it reads extended headers of any size into memory, keeps every
member, and takes a damaged header in the middle of an archive for its end. This one reads each
byte once, in order, holds one header at a time, and refuses what it does not understand.

Formats: POSIX.1-2017 pax(1) "ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
"Basic Tar Format". Extended attributes are the SCHILY.xattr.* records that star and Go write.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from torpor.images.errors import BadArchiveError, LimitExceededError
from torpor.images.limits import Budget
from torpor.images.streams import CHUNK_BYTES, Reader

BLOCK_BYTES = 512
MIN_MTIME_NS = -0x8000_0000 * 1_000_000_000
MAX_MTIME_NS = 0x3_7FFF_FFFF * 1_000_000_000
"""The years 1901 and 2446, between which ext4 counts."""

_XATTR = b"SCHILY.xattr."
_ZERO_BLOCK = bytes(BLOCK_BYTES)


class Kind(Enum):
    """What an entry is."""

    FILE = "file"
    HARD_LINK = "hard link"
    SYMBOLIC_LINK = "symbolic link"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_KINDS = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMBOLIC_LINK,
    b"3": Kind.CHARACTER_DEVICE,
    b"4": Kind.BLOCK_DEVICE,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)


@dataclass(slots=True)
class Entry:
    """One member of an archive. `path` has no empty, `.` or `..` component; () is the root."""

    kind: Kind
    path: tuple[bytes, ...]
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size_bytes: int = 0
    link_target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def display(self) -> str:
        """The path for a message."""
        return display(self.path)


def display(path: tuple[bytes, ...]) -> str:
    """A path for a message: printable whatever is in it."""
    text = b"/".join(path).decode("utf-8", "backslashreplace")
    text = text if len(text) <= 200 else text[:200] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def split_path(raw: bytes, budget: Budget, origin: str) -> tuple[bytes, ...]:
    """The components of an untrusted path, taken as relative to the image's root.

    Raises BadArchiveError for what could lead out of the root, or fits no file system.
    """
    limits = budget.limits
    parts = tuple(part for part in raw.split(b"/") if part not in (b"", b"."))
    shown = display(parts)
    if b".." in parts:
        raise BadArchiveError(f"{origin}: path {shown!r} has a '..' component (path traversal)")
    if b"\0" in raw:
        raise BadArchiveError(f"{origin}: path {shown!r} has a NUL byte")
    if len(raw) > limits.max_path_bytes:
        raise BadArchiveError(
            f"{origin}: path {shown!r} is longer than {limits.max_path_bytes} bytes"
        )
    if any(len(part) > limits.max_name_bytes for part in parts):
        raise BadArchiveError(
            f"{origin}: a name in path {shown!r} is longer than {limits.max_name_bytes} bytes"
        )
    return parts


class TarReader:
    """Iterates over the entries of a tar stream; `data()` gives the content of the current one."""

    def __init__(self, source: Reader, budget: Budget, origin: str) -> None:
        """`origin` names the archive in messages."""
        self._source = source
        self._budget = budget
        self._origin = origin
        self._offset = 0
        self._unread_bytes = 0
        self._padding_bytes = 0
        self._global_pax: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Yields the entries in order. What is left unread of an entry's data is skipped."""
        pax: dict[bytes, bytes] = {}
        extended_bytes = 0
        while True:
            self._skip_rest()
            header = self._read_block()
            if header == _ZERO_BLOCK:
                if pax:
                    raise self._bad("an extended header describes no entry")
                return
            type_flag = header[156:157]
            self._check(header)
            if type_flag in (b"x", b"X", b"g", b"L", b"K"):
                size_bytes = self._number(header[124:136], "size")
                extended_bytes += size_bytes
                if extended_bytes > self._budget.limits.max_header_bytes:
                    raise LimitExceededError(
                        f"{self._where()}: an extended header is larger than "
                        f"{self._budget.limits.max_header_bytes:,} bytes"
                    )
                self._start_data(size_bytes)
                content = b"".join(self.data())
                if type_flag == b"g":
                    self._global_pax.update(self._pax_records(content))
                elif type_flag == b"L":
                    pax[b"path"] = content.rstrip(b"\0")
                elif type_flag == b"K":
                    pax[b"linkpath"] = content.rstrip(b"\0")
                else:
                    pax.update(self._pax_records(content))
                continue
            entry = self._entry(header, type_flag, {**self._global_pax, **pax})
            self._budget.take_entry(self._where(), device=entry.kind in DEVICES)
            self._start_data(entry.size_bytes)
            yield entry
            pax = {}
            extended_bytes = 0

    def data(self) -> Iterator[bytes]:
        """The content of the entry that was yielded last."""
        while self._unread_bytes:
            chunk = self._source.read(min(self._unread_bytes, CHUNK_BYTES))
            if not chunk:
                raise self._bad("the archive ends inside an entry (truncated?)")
            self._unread_bytes -= len(chunk)
            self._offset += len(chunk)
            yield chunk

    def _where(self) -> str:
        return f"{self._origin}, offset {self._offset:,}"

    def _bad(self, what: str) -> BadArchiveError:
        return BadArchiveError(f"{self._where()}: {what}")

    def _start_data(self, size_bytes: int) -> None:
        self._unread_bytes = size_bytes
        self._padding_bytes = -size_bytes % BLOCK_BYTES

    def _skip_rest(self) -> None:
        for _ in self.data():
            pass
        self._unread_bytes, self._padding_bytes = self._padding_bytes, 0
        for _ in self.data():
            pass

    def _read_block(self) -> bytes:
        block = b""
        while len(block) < BLOCK_BYTES:
            more = self._source.read(BLOCK_BYTES - len(block))
            if not more:
                raise self._bad(
                    "the archive ends without an end marker (truncated, or no tar archive?)"
                )
            block += more
        self._offset += BLOCK_BYTES
        return block

    def _check(self, header: bytes) -> None:
        expected = self._number(header[148:156], "checksum")
        # The checksum's own field counts as spaces.
        if sum(header) - sum(header[148:156]) + 8 * 0x20 != expected:
            raise self._bad("a header's checksum is wrong (damaged, or no tar archive?)")

    def _number(self, raw: bytes, what: str) -> int:
        if raw[0] & 0x80:  # GNU base-256, big-endian two's complement after the first bit
            value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
            if raw[0] & 0x40:
                value -= 1 << (8 * len(raw) - 1)
        else:
            digits = raw.split(b"\0", 1)[0].strip(b" ")
            if digits.strip(b"01234567"):
                raise self._bad(f"{what} {digits!r} is no octal number")
            value = int(digits or b"0", 8)
        if what != "time" and value < 0:
            raise self._bad(f"{what} is negative")
        return value

    def _pax_records(self, content: bytes) -> dict[bytes, bytes]:
        records: dict[bytes, bytes] = {}
        at = 0
        while at < len(content):
            space = content.find(b" ", at, at + 20)
            length = content[at:space]
            if space < 0 or not length.isdigit():
                raise self._bad("an extended header record has no length")
            end = at + int(length)
            record = content[space + 1 : end - 1]
            if end > len(content) or end <= space + 1 or content[end - 1 : end] != b"\n":
                raise self._bad("an extended header record does not end where its length says")
            key, equals, value = record.partition(b"=")
            if not equals:
                raise self._bad("an extended header record is not KEY=VALUE")
            if key.startswith(b"GNU.sparse."):
                raise self._bad("sparse entries are not supported; create it without --sparse")
            records[key] = value
            at = end
        return records

    def _entry(self, header: bytes, type_flag: bytes, pax: dict[bytes, bytes]) -> Entry:
        kind = _KINDS.get(type_flag)
        if kind is None:
            hint = " (sparse; create it without --sparse)" if type_flag == b"S" else ""
            raise self._bad(f"entry type {type_flag!r} is not supported{hint}")
        raw_path = pax.get(b"path") or self._plain_path(header)
        if kind is Kind.FILE and type_flag != b"7" and raw_path.endswith(b"/"):
            kind = Kind.DIRECTORY  # as archives older than ustar mark one
        path = split_path(raw_path, self._budget, self._where())
        size_bytes = 0
        if kind is Kind.FILE:
            size_bytes = self._pax_number(pax, b"size", self._number(header[124:136], "size"))
        link_target = b""
        if kind in (Kind.HARD_LINK, Kind.SYMBOLIC_LINK):
            link_target = pax.get(b"linkpath") or header[157:257].split(b"\0", 1)[0]
            if not link_target or b"\0" in link_target or len(link_target) > 4095:
                raise self._bad(f"the target of link {display(path)!r} is empty or no path")
        device = (0, 0)
        if kind in DEVICES:
            device = (
                self._number(header[329:337], "major device number"),
                self._number(header[337:345], "minor device number"),
            )
            if device[0] > 0xFFF or device[1] > 0xFFFFF:
                raise self._bad(f"device numbers {device} of {display(path)!r} fit no Linux device")
        uid = self._pax_number(pax, b"uid", self._number(header[108:116], "user"))
        gid = self._pax_number(pax, b"gid", self._number(header[116:124], "group"))
        if max(uid, gid) >= 0xFFFFFFFF:
            raise self._bad(f"owner {uid}:{gid} of {display(path)!r} has more than 32 bits")
        return Entry(
            kind=kind,
            path=path,
            mode=self._number(header[100:108], "mode") & 0o7777,
            uid=uid,
            gid=gid,
            mtime_ns=self._mtime_ns(header, pax),
            size_bytes=size_bytes,
            link_target=link_target,
            device=device,
            xattrs={
                key.removeprefix(_XATTR): value
                for key, value in pax.items()
                if key.startswith(_XATTR) and key != _XATTR
            },
        )

    def _plain_path(self, header: bytes) -> bytes:
        name = header[0:100].split(b"\0", 1)[0]
        # GNU's magic is "ustar  \0"; what POSIX calls the prefix has other meanings there.
        if header[257:263] == b"ustar\0":
            prefix = header[345:500].split(b"\0", 1)[0]
            if prefix:
                return prefix + b"/" + name
        return name

    def _pax_number(self, pax: dict[bytes, bytes], key: bytes, otherwise: int) -> int:
        value = pax.get(key)
        if value is None:
            return otherwise
        if not value.isdigit() or len(value) > 20:
            raise self._bad(f"extended header {key.decode()} {value[:40]!r} is no number")
        return int(value)

    def _mtime_ns(self, header: bytes, pax: dict[bytes, bytes]) -> int:
        value = pax.get(b"mtime")
        if value is None:
            mtime_ns = self._number(header[136:148], "time") * 1_000_000_000
        else:
            whole, _, fraction = value.partition(b".")
            digits = whole.removeprefix(b"-")
            if len(value) > 40 or not digits.isdigit() or (fraction and not fraction.isdigit()):
                raise self._bad(f"extended header mtime {value[:40]!r} is no time")
            mtime_ns = int(digits) * 1_000_000_000 + int((fraction + b"0" * 9)[:9])
            if whole.startswith(b"-"):
                mtime_ns = -mtime_ns
        return min(max(mtime_ns, MIN_MTIME_NS), MAX_MTIME_NS)

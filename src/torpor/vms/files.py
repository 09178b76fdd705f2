"""The file that `torpor vm snapshot` writes: whose state it is, sealed, and the state.

    offset 0   8 bytes "TORPORVM"
           8   u32 version (VERSION), little endian
          12   u32 length H of the description, at most MAX_DESCRIPTION_BYTES
          16   32 bytes: code over owner, instance, generation, base digests, description and delta
          48   description: a JSON object, all members of Description
        48+H   delta, `delta_bytes` of it: a snapshot file of the VM process (docs/snapshots.md)
               template, `template_bytes` of it: the same; nothing behind it

The code is made and checked here, outside any VM process, with the data directory's key. What the
template is, is known by its digest. Nothing of a file is used before its code was found right.
"""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torpor.controller.sealing import Seal
from torpor.durable import write_durably
from torpor.errors import TorporError
from torpor.store import Content, DamagedError

VERSION = 1
MAX_DESCRIPTION_BYTES = 1 << 20
_HEADER = struct.Struct("<8sII32s")
_MAGIC = b"TORPORVM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a file says of itself."""

    owner: str
    instance: str
    """Uuid, 32 digits."""
    generation: int
    name: str
    """Of the VM that was stored."""
    image: str
    """Digest."""
    template: str
    """Digest."""
    command: str
    """The first of it, for people."""
    interactive: bool
    """Whether the program has a standard input."""
    memory: str
    created: str
    """ISO 8601."""
    delta_bytes: int
    """0: the state is the template's."""
    template_bytes: int
    """0: the template is not in the file."""

    @property
    def base(self) -> str:
        """The digests of what the state needs."""
        return f"{self.image} {self.template}"


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A file that was read, whole and of this data directory."""

    description: Description
    delta: bytes
    template: bytes
    """Empty where it is not in the file."""


def write_snapshot(
    path: Path, description: Description, delta: bytes, template: bytes, seal: Seal
) -> None:
    """Make the file, or replace it, all at once and durably."""
    text = json.dumps(asdict(description)).encode()
    code = _code(seal, description, text, delta)
    header = _HEADER.pack(_MAGIC, VERSION, len(text), code)
    write_durably(path, header, text, delta, template)


def is_snapshot_file(path: Path) -> bool:
    """Whether a file begins like one of these."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_snapshot(path: Path, seal: Seal) -> SnapshotFile:
    """Read a file. Raises DamagedError where anything of it is not as it was written."""
    content = path.read_bytes()
    if len(content) < _HEADER.size or not content.startswith(_MAGIC):
        raise DamagedError(f"{path}: no file of `torpor vm snapshot`, or cut off")
    _, version, length, code = _HEADER.unpack_from(content)
    if version != VERSION:
        raise DamagedError(f"{path}: version {version} of the format; this program reads {VERSION}")
    text = content[_HEADER.size : _HEADER.size + min(length, MAX_DESCRIPTION_BYTES)]
    if len(text) != length:
        raise DamagedError(f"{path}: damaged: its description is cut off")
    try:
        description = _described(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{path}: damaged: its description is none") from error
    start = _HEADER.size + length
    end = start + description.delta_bytes
    if len(content) != end + description.template_bytes:
        raise DamagedError(
            f"{path}: damaged: {len(content)} bytes, not {end + description.template_bytes}"
        )
    delta, template = content[start:end], content[end:]
    try:
        seal.check(
            code,
            description.owner,
            description.instance,
            description.generation,
            description.base,
            _digest(text, delta),
        )
    except DamagedError as error:
        raise DamagedError(f"{path}: damaged, or of another data directory: {error}") from error
    if template:
        _check_template(path, description, template)
    return SnapshotFile(description, delta, template)


def _check_template(path: Path, description: Description, template: bytes) -> None:
    kind, _, digest = description.template.partition(":")
    if kind != "sha256" or not Content(template, bytes.fromhex(digest)).is_whole():
        raise DamagedError(f"{path}: damaged: the template in it is not {description.template}")


def _described(members: object) -> Description:
    """Raises TypeError or ValueError for anything but a whole description."""
    if not isinstance(members, dict):
        raise TypeError
    description = Description(**members)
    for field in fields(description):
        value = getattr(description, field.name)
        if type(value) is not field.type or (field.type is int and value < 0):
            raise TypeError(field.name)
    return description


def _code(seal: Seal, description: Description, text: bytes, delta: bytes) -> bytes:
    return seal.make(
        description.owner,
        description.instance,
        description.generation,
        description.base,
        _digest(text, delta),
    )


def _digest(text: bytes, delta: bytes) -> bytes:
    return hashlib.sha256(len(text).to_bytes(8, "little") + text + delta).digest()


def check_owner(path: Path, description: Description, owner: str) -> None:
    """Raises TorporError where another user's VM is in the file."""
    if description.owner != owner:
        raise TorporError(
            f"{path}: belongs to {description.owner}, and you are {owner}: nothing of one owner "
            "serves another"
        )

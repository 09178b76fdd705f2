"""What is said on the control socket: frozen records, and how they stand in a message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from torpor.envelope import Datagram, Envelope

VERSION = 1
MAX_BODY_BYTES = 128 << 10
MAX_DESCRIPTORS = 16
_ENVELOPE = Envelope(b"TPVM", VERSION)
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


class ProtocolError(Exception):
    """The other side broke the protocol."""


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not a failure of this program
    """A VM process refused a command; it is as it was before unless the connection ended."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        """`bad_request`, `bad_snapshot`, `wrong_state`, `busy` or `host`."""
        self.message = message


READY_PORTS_MAX = 16


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that will boot a program. Digests and uuids are lower-case hexadecimal digits."""

    owner: str
    image: str
    memory_limit_bytes: int
    argv: tuple[str, ...]
    envp: tuple[str, ...]
    host_name: str
    uuid: str
    workdir: str = ""
    user: str = ""
    template: bool = False
    """Stop when the program is ready."""
    ready_ports: tuple[int, ...] = ()
    """Of which it has to listen at one, at any if there are none; at most READY_PORTS_MAX."""
    seed: str | None = None
    """What random numbers begin with, 64 digits: for a VM that is stored then and ends."""


class Prepare(msgspec.Struct, frozen=True, kw_only=True):
    """A VM of a template, at rest."""

    template: str
    """Digest of the template's file (torpor.snapshot_format)."""
    warm_base: str | None = None
    never_run: bool = False


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A state of an instance."""

    uuid: str
    generation: int


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """Who a VM is to be."""

    uuid: str
    generation: int
    host_name: str = ""
    delta: str | None = None
    """Digest of what differs from the template, if anything does."""
    origin: Origin | None = None
    """What the delta was stored as, where that was another instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a VM process is."""

    state: str
    """`empty`, `stopped`, `resting` or `running`."""
    busy: bool
    """Another command is being carried out."""
    instance: Origin | None
    """What the VM was restored with; none before it has run."""
    stored_generation: int | None
    """Of this instance's last standby or checkpoint in this process."""
    still: bool
    """The guest has done nothing since then."""
    template: str | None
    warm_base: str | None
    seeded: bool
    """Booted with random numbers that its siblings were booted with too."""
    unlinked: bool
    """The link is lost; output waits for another one."""
    memory_bytes: int
    """That the process has of its own."""
    cpu_ns: int
    """That the process has used since it was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A snapshot that was just made: a sealed memfd with the file, the caller's to close."""

    descriptor: int
    bytes: int
    pages: dict[str, int]
    """By coding: `zero`, `raw`, `template`, `warm_base`."""
    next_deadline_ns: int | None
    """From the stop to the next timer on CLOCK_MONOTONIC."""
    drew_random: bool
    """A program has used a generator of random numbers like BoringSSL's, so that numbers may lie in
    memory for later use."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The program is ready; its VM is stopped."""


@dataclass(frozen=True, slots=True)
class Unlinked:
    """The link is lost, and the VM runs on; `VMProcess.link` gives it another one."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The VM has ended, and its process ends."""

    reason: str
    """As docs/control-socket.md has it, or `lost`."""
    status: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it was received."""

    body: dict[str, Any]
    descriptors: list[int] = field(default_factory=list)


def encode(request_id: int, command: str, arguments: dict[str, Any], descriptors: int) -> bytes:
    """A request as it stands in a datagram."""
    body = _encode({"id": request_id, "command": {command: arguments}})
    if len(body) > MAX_BODY_BYTES:
        raise Refused(
            "bad_request", f"a request of {len(body)} bytes; {MAX_BODY_BYTES} are allowed"
        )
    return _ENVELOPE.wrap(body, descriptors)


def decode(datagram: Datagram, descriptors: list[int]) -> Message:
    """Check a datagram against its header."""
    try:
        content = _ENVELOPE.unwrap(datagram, len(descriptors))
    except ValueError as error:
        raise ProtocolError(str(error)) from error
    try:
        return Message(_decode(content), descriptors)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a message that is no object: {error}") from error


def arguments_of(record: Boot | Prepare | Restore) -> dict[str, Any]:
    """A record as the arguments of its command."""
    return msgspec.structs.asdict(record)


def event_of(body: dict[str, Any]) -> Ready | Unlinked | Ended:
    """An event from a message's body."""
    match body.get("event"):
        case "ready":
            return Ready()
        case "unlinked":
            return Unlinked(body["message"])
        case "ended":
            return Ended(reason=body["reason"], status=body["status"], message=body["message"])
        case other:
            raise ProtocolError(f"event {other!r}")

"""A guest's end of a link, played by a thread: it accepts streams and speaks their frames.

For tests of the proxy's rules alone, where a real guest can't be made to misbehave on cue.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

_FRAME = struct.Struct("<IHHII")
MESSAGE_MAX_BYTES = 64 << 10
DATA, CREDIT, SHUTDOWN, OPEN, OPENED, CLOSE, ATTACH, RESUMED, HELD = 1, 2, 3, 6, 7, 8, 10, 11, 12
STDOUT, CONTROL = 1, 4
WINDOW_BYTES = 16 << 10
ECONNREFUSED = 111


def frame(stream: int, kind: int, payload: bytes = b"", argument: int = 0) -> bytes:
    """One frame as it travels."""
    head = _FRAME.pack(stream, kind, 0, len(payload), argument)
    return head + payload.ljust((len(payload) + 7) // 8 * 8, b"\0")


def frames(message: bytes) -> list[tuple[int, int, bytes, int]]:
    """Stream, kind, payload and argument of each frame of a message."""
    found = []
    while message:
        stream, kind, _, length, argument = _FRAME.unpack_from(message)
        found.append((stream, kind, message[16 : 16 + length], argument))
        message = message[16 + (length + 7) // 8 * 8 :]
    return found


@dataclass
class Connection:
    """A stream that the proxy has opened, on the guest's side."""

    guest: Guest
    number: int
    port: int
    received: bytearray = field(default_factory=bytearray)
    sent_bytes: int = 0
    received_bytes: int = 0
    may_send_bytes: int = WINDOW_BYTES
    opened: bool = False
    ended: bool = False
    closed: bool = False
    we_closed: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def send(self, data: bytes) -> None:
        """Blocks while the window is closed."""
        while data:
            with self.changed:
                self.changed.wait_for(
                    lambda: self.may_send_bytes > 0 or self.closed or self.guest.over, 30
                )
                is_over = self.closed or self.we_closed or self.guest.over
                if is_over or not self.may_send_bytes:
                    raise BrokenPipeError(self.number)
                piece = data[: min(self.may_send_bytes, 32 << 10)]
                self.may_send_bytes -= len(piece)
                self.sent_bytes += len(piece)
                # Before anybody can close it.
                self.guest.say(frame(self.number, DATA, piece))
            data = data[len(piece) :]

    def recv(self, *, at_least: int = 1) -> bytes:
        """What has come, once it is so much; empty at the end."""
        with self.changed:
            self.changed.wait_for(
                lambda: (
                    len(self.received) >= at_least or self.ended or self.closed or self.guest.over
                ),
                30,
            )
            data = bytes(self.received)
            self.received.clear()
            if data and not self.we_closed:
                self.guest.say(frame(self.number, CREDIT, argument=len(data)))
        return data

    def close(self, errno: int = 0) -> None:
        with self.changed:
            if self.we_closed:
                return
            self.we_closed = True
            self.guest.say(frame(self.number, CLOSE, argument=errno))
        self.guest.forget_if_over(self)


Program = Callable[[Connection], None]
everyone: list[Guest] = []
"""Guests whose link is open; tests end with `end_all`."""


def end_all() -> None:
    while everyone:
        everyone[-1].die()


class Guest:
    """Runs `program` for each connection, in a thread of its own, until it dies or sleeps.

    Ports of `refuse` are refused. `state` of a guest that slept continues its connections. With
    `hesitates` connections are accepted when their first bytes have come, or `dies_before` that.
    """

    def __init__(
        self,
        program: Program,
        *,
        refuse: tuple[int, ...] = (),
        generation: int = 1,
        state: dict[int, Connection] | None = None,
        hesitates: bool = False,
        dies_before: bool = False,
    ) -> None:
        self.hesitates, self.dies_before = hesitates or dies_before, dies_before
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.program = program
        self.refuse = refuse
        self.generation = generation
        self.connections: dict[int, Connection] = state or {}
        self.accepted = 0
        self.over = False
        self.resumed: list[int] = []
        self.attached: set[int] = set()
        self.seen: list[tuple[int, int]] = []
        """Stream and kind of every frame."""
        for connection in self.connections.values():
            connection.guest = self
        self._slept = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        everyone.append(self)

    def say(self, message: bytes) -> None:
        with contextlib.suppress(OSError):
            self.ours.send(message)

    def connect(self, number: int, address: str, port: int) -> Connection:
        """Opens a connection to the outside; `number` is odd. It is there, or closed."""
        ends = [(address, port), ("192.0.2.2", 40_000)]
        payload = b"".join(
            struct.pack("<HHI4s12x", 4, 0, its_port, socket.inet_aton(its))
            for its, its_port in ends
        )
        connection = self.connections[number] = Connection(self, number, port)
        self.attached.add(number)
        self.say(frame(number, OPEN, payload, 1))
        with connection.changed:
            connection.changed.wait_for(lambda: connection.opened or connection.closed, 30)
        return connection

    def write(self, data: bytes) -> None:
        """To standard output."""
        self.say(frame(STDOUT, DATA, data))

    def hold(self, held: bool) -> None:
        """Asks to stay awake, or does not any more."""
        self.say(frame(CONTROL, HELD, argument=int(held)))

    def sleep(self, *, closes: bool = True) -> dict[int, Connection]:
        """Stops, as a guest whose state is stored; returns what goes on.

        The VM process closes the link with that, or later. Programs that wait for their connection
        wait on.
        """
        self._slept = True
        if closes:
            self._close()
        else:
            self.ours.shutdown(socket.SHUT_RD)  # the other end does not see it
            self._thread.join(10)
        return self.connections

    def die(self) -> None:
        """Closes the link, as a VM process does that is killed."""
        self._end()
        self._close()

    def _end(self) -> None:
        self.over = True
        for connection in list(self.connections.values()):
            with connection.changed:
                connection.changed.notify_all()

    def _close(self) -> None:
        if self in everyone:
            everyone.remove(self)
            self.ours.shutdown(socket.SHUT_RDWR)
            if threading.current_thread() is not self._thread:
                self._thread.join(10)
            self.ours.close()
            self.theirs.close()

    def _run(self) -> None:
        while True:
            try:
                message = self.ours.recv(MESSAGE_MAX_BYTES)
            except OSError:
                message = b""
            if not message:
                break
            for stream, kind, payload, argument in frames(message):
                self.seen.append((stream, kind))
                self._take(stream, kind, payload, argument)
        if not self._slept:
            self._end()

    def _take(self, stream: int, kind: int, payload: bytes, argument: int) -> None:
        if stream == CONTROL:
            if kind == RESUMED:
                self.resumed.append(argument)
                for number in set(self.connections) - self.attached:
                    self.connections.pop(number).closed = True
            return
        if kind == OPEN:
            port = struct.unpack_from("<I", payload, 4)[0]
            if port in self.refuse:
                self.say(frame(stream, CLOSE, argument=ECONNREFUSED))
                return
            connection = Connection(self, stream, port)
            self.connections[stream] = connection
            self.attached.add(stream)
            if not self.hesitates:
                self._accept(connection)
            return
        connection_or_none = self.connections.get(stream)
        if kind == ATTACH:
            self._attach(stream, payload, argument)
            return
        if connection_or_none is None:
            return
        connection = connection_or_none
        if kind == DATA and self.dies_before:
            self.die()
            return
        with connection.changed:
            if kind == DATA:
                if not connection.received_bytes and self.hesitates:
                    self._accept(connection)
                connection.received += payload
                connection.received_bytes += len(payload)
            elif kind == CREDIT:
                connection.may_send_bytes += argument
            elif kind == OPENED:
                connection.opened = True
            elif kind == SHUTDOWN:
                connection.ended = True
            elif kind == CLOSE:
                connection.closed = True
            connection.changed.notify_all()
        if kind == CLOSE:
            connection.close()
            self.forget_if_over(connection)

    def _accept(self, connection: Connection) -> None:
        self.accepted += 1
        self.say(frame(connection.number, OPENED))
        threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _attach(self, stream: int, payload: bytes, argument: int) -> None:
        connection = self.connections.get(stream)
        counts = struct.unpack("<QQ", payload)
        if connection is None or counts != (connection.received_bytes, connection.sent_bytes):
            self.say(frame(stream, CLOSE, argument=104))
            return
        self.attached.add(stream)
        own = struct.pack("<QQ", connection.sent_bytes, connection.received_bytes)
        self.say(frame(stream, ATTACH, own, argument))

    def forget_if_over(self, connection: Connection) -> None:
        if connection.closed and connection.we_closed:
            self.connections.pop(connection.number, None)

    def _serve(self, connection: Connection) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.program(connection)
        # A guest that sleeps has its programs wait on; the one that goes on closes for them.
        connection.close()


def read_request(connection: Connection) -> tuple[bytes, dict[str, str], bytes] | None:
    """Request line, header fields and body; None at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv()
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    line, *rest = head.split(b"\r\n")
    fields = {}
    for one in rest:
        name, _, value = one.decode("latin-1").partition(":")
        fields[name.lower()] = value.strip()
    if fields.get("transfer-encoding") == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            more = connection.recv()
            if not more:
                return None
            body += more
        return line, fields, dechunk(body)
    while len(body) < int(fields.get("content-length", "0")):
        more = connection.recv()
        if not more:
            return None
        body += more
    return line, fields, body


def dechunk(body: bytes | bytearray) -> bytes:
    """The bytes of a body in chunks."""
    out = bytearray()
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        length = int(body[at:end], 16)
        if length == 0:
            return bytes(out)
        out += body[end + 2 : end + 2 + length]
        at = end + 2 + length + 2


def answer(connection: Connection, body: bytes, status: str = "200 OK", head: str = "") -> None:
    text = f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(body)}\r\n\r\n"
    connection.send(text.encode() + body)


def echo(connection: Connection) -> None:
    """Answers each request with its request line, its header fields and its body."""
    while (request := read_request(connection)) is not None:
        line, fields, body = request
        text = line + b"\n" + "".join(f"{k}: {v}\n" for k, v in sorted(fields.items())).encode()
        answer(connection, text + b"\n" + body)

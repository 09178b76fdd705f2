"""The host's end of a link: a VM's console, and the connections of its programs.

While the VM moves to another VM process the peer stays, as a proxy does: `park` takes it off the
old link, `resume` onto the next. The rules are those of torpor_abi::frame.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections import deque
from collections.abc import Callable

TIMEOUT_S = 60.0
_FRAME = struct.Struct("<IHHII")
_COUNTS = struct.Struct("<QQ")
_STDIN, _STDOUT, _STDERR, _TRACE, _CONTROL, _FIRST_DYNAMIC = 0, 1, 2, 3, 4, 16
_DATA, _CREDIT, _SHUTDOWN = 1, 2, 3
_OPEN, _OPENED, _CLOSE = 6, 7, 8
_ATTACH, _RESUMED = 10, 11
_TCP = 1
_WINDOW_BYTES = 16 << 10
_PIECE_BYTES = 8 << 10
GUEST = "192.0.2.2"
CLIENT = ("203.0.113.7", 40000)


def _endpoint(address: str, port: int) -> bytes:
    ip = ipaddress.ip_address(address)
    return struct.pack("<HHI16s", ip.version, 0, port, ip.packed)


class Stream:
    """A connection: what the guest has sent, and what it is still to get."""

    def __init__(self, peer: Peer, number: int, *, opened: bool) -> None:
        self._peer = peer
        self.number = number
        self.opened = opened
        self.received = bytearray()
        """All bytes from the guest, in order."""
        self.ended = False
        """The guest has sent all that it will (SHUTDOWN or CLOSE)."""
        self.closed: int | None = None
        """The guest's CLOSE: 0, or an errno."""
        self.unsent = bytearray()
        self.sent_bytes = 0
        self.may_send_bytes = _WINDOW_BYTES
        self.owed_bytes = 0
        self.said_close = False
        self.attaching = False

    def write(self, data: bytes) -> None:
        """Send as the guest's window allows."""
        self.unsent += data
        self._peer.push(self)

    def close(self) -> None:
        self.said_close = True
        self._peer.send(self.number, _CLOSE)

    async def until(self, done: Callable[[Stream], bool]) -> None:
        await self._peer.until(lambda: done(self))


class Peer:
    """See the module's text. Made in a running event loop."""

    def __init__(self) -> None:
        self._ours: socket.socket | None = None
        self.theirs: socket.socket | None = None
        self.output = bytearray()
        """Console output that no `line` has taken."""
        self.streams: dict[int, Stream] = {}
        self.accepted: list[Stream] = []
        """Connections that the guest has opened."""
        self.generous = True
        """Whether the guest is allowed to send more as it does."""
        self._quiet = False
        self._waiting: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._next_number = _FIRST_DYNAMIC
        self._loop = asyncio.get_running_loop()
        self._new_link()

    def _new_link(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._loop.add_reader(self._ours, self._readable)

    def handed_over(self) -> None:
        """Close this process's copy of the VM's end."""
        if self.theirs is not None:
            self.theirs.close()
            self.theirs = None

    def close(self) -> None:
        """Leave the link; for the VM the peer is gone."""
        if self._ours is not None:
            self._loop.remove_reader(self._ours)
            self._loop.remove_writer(self._ours)
            self._ours.close()
            self._ours = None
        self.handed_over()
        self._news.set()

    def replace_link(self) -> None:
        """Make a new pair in the place of a link that is gone, and forget its connections."""
        self.close()
        self._waiting.clear()
        self.streams.clear()
        self._new_link()

    # The console

    async def send_line(self, line: str) -> None:
        data = line.encode() + b"\n"
        self._send(_FRAME.pack(_STDIN, _DATA, 0, len(data), 0) + data)

    async def line(self) -> str:
        """The next line of output."""
        await self.until(lambda: b"\n" in self.output)
        line, _, rest = bytes(self.output).partition(b"\n")
        self.output = bytearray(rest)
        return line.decode()

    async def ask(self, line: str) -> str:
        await self.send_line(line)
        return await self.line()

    # Connections

    async def connect(self, port: int) -> Stream:
        """Connect to a port of the guest."""
        stream = Stream(self, self._next_number, opened=False)
        self._next_number += 2
        self.streams[stream.number] = stream
        self.send(stream.number, _OPEN, _TCP, _endpoint(GUEST, port) + _endpoint(*CLIENT))
        await stream.until(lambda s: s.opened or s.closed is not None)
        return stream

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not done():
                if self._ours is None:
                    raise EOFError(f"the link has ended; output so far {bytes(self.output)!r}")
                self._news.clear()
                await self._news.wait()

    async def be_quiet(self) -> None:
        """Send nothing more, so that all that was sent is part of the state that is put down."""
        self._quiet = True
        await self.until(lambda: not self._waiting)

    def park(self) -> None:
        """The VM is put down: read to the end what it has sent."""
        assert self._quiet
        assert not self._waiting
        self._readable()
        self.close()
        self._new_link()

    def resume(self, generation: int, *, keep: bool = True) -> None:
        """The VM has been restored: its connections go on, or with `keep` false none does."""
        self._quiet = False
        for stream in list(self.streams.values()):
            if not keep:
                self._over(stream)
            elif stream.closed is None:
                stream.attaching = True
                counts = _COUNTS.pack(stream.sent_bytes, len(stream.received))
                self.send(stream.number, _ATTACH, generation, counts)
        self.send(_CONTROL, _RESUMED, generation)

    def push(self, stream: Stream) -> None:
        """Send what the guest's window allows."""
        while (
            stream.opened
            and not (self._quiet or stream.attaching or stream.said_close)
            and (size := min(len(stream.unsent), stream.may_send_bytes, _PIECE_BYTES)) > 0
        ):
            self.send(stream.number, _DATA, 0, bytes(stream.unsent[:size]))
            del stream.unsent[:size]
            stream.sent_bytes += size
            stream.may_send_bytes -= size

    def allow(self, stream: Stream) -> None:
        """Hand back what the guest has sent."""
        if stream.owed_bytes > 0 and not (self._quiet or stream.attaching or stream.said_close):
            self.send(stream.number, _CREDIT, stream.owed_bytes)
            stream.owed_bytes = 0

    def send(self, number: int, kind: int, argument: int = 0, payload: bytes = b"") -> None:
        self._send(_FRAME.pack(number, kind, 0, len(payload), argument) + payload)

    def _send(self, frame: bytes) -> None:
        self._waiting.append(frame.ljust((len(frame) + 7) // 8 * 8, b"\0"))
        self._writable()

    def _writable(self) -> None:
        assert self._ours is not None
        while self._waiting:
            try:
                self._ours.send(self._waiting[0])
            except BlockingIOError:
                self._loop.add_writer(self._ours, self._writable)
                return
            except OSError:
                # The VM is gone, or put to rest; what it was sent before that counts.
                self._waiting.clear()
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._ours)
        self._news.set()

    def _readable(self) -> None:
        while self._ours is not None:
            try:
                message = self._ours.recv(1 << 16)
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue
            if not message:
                if not self._quiet:
                    self.close()
                break
            while message:
                number, kind, _, length, argument = _FRAME.unpack_from(message)
                self._take(number, kind, argument, message[16 : 16 + length])
                message = message[16 + (length + 7) // 8 * 8 :]
        self._news.set()

    def _take(self, number: int, kind: int, argument: int, payload: bytes) -> None:
        if number < _FIRST_DYNAMIC:
            if kind == _DATA and number in (_STDOUT, _STDERR):
                self.output += payload
                if self.generous and not self._quiet:
                    self.send(number, _CREDIT, len(payload))
            return
        if kind == _OPEN:
            stream = Stream(self, number, opened=True)
            self.streams[number] = stream
            self.accepted.append(stream)
            self.send(number, _OPENED)
            return
        stream = self.streams[number]
        if kind == _DATA:
            stream.received += payload
            stream.owed_bytes += len(payload)
            if self.generous:
                self.allow(stream)
        elif kind == _CREDIT:
            stream.may_send_bytes += argument
        elif kind == _OPENED:
            stream.opened = True
        elif kind == _SHUTDOWN:
            stream.ended = True
        elif kind == _ATTACH:
            counts = (len(stream.received), stream.sent_bytes)
            assert _COUNTS.unpack(payload) == counts, "the guest has counted differently"
            stream.attaching = False
            self.allow(stream)
        elif kind == _CLOSE:
            stream.ended = True
            stream.closed = argument
            if not stream.said_close:
                stream.close()
            self._over(stream)
        self.push(stream)

    def _over(self, stream: Stream) -> None:
        self.streams.pop(stream.number, None)

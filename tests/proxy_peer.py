"""A stand-in for the proxy's end of its socket: keeps links, reads consoles, asks what it is told.

For tests of torpord alone; end-to-end tests use the real proxy.
"""

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER = struct.Struct("<4sHHII")
_FRAME = struct.Struct("<IHHII")
_DATA, _CREDIT = 1, 2
PORTS_PAGE = 4
"""Fewer than the proxy's, so that there are pages."""


@dataclass
class PeerLink:
    """A link, and what its VM said."""

    instance: str
    generation: int
    end: socket.socket
    attachment: dict[str, Any]
    output: bytearray = field(default_factory=bytearray)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class Refused(Exception):  # noqa: N818 -- an answer
    """torpord refused; the code is the text's first word."""


class ProxyPeer:
    """Listens where the proxy does, and serves one torpord after the other."""

    def __init__(self, data_dir: Path) -> None:
        (data_dir / "run").mkdir(mode=0o700, exist_ok=True)
        path = data_dir / "run" / "proxy.sock"
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        self._listener.listen()
        self._connection: socket.socket | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 1
        self._tasks: list[asyncio.Task[None]] = []
        self.links: dict[tuple[str, int], PeerLink] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.usage: dict[str, dict[str, Any]] = {}
        """What went over an instance's link, and whether it is quiet."""
        self.ports: set[int] = set()
        """Where it listens."""
        self.told: list[dict[str, Any]] = []
        self.connected = asyncio.Event()
        self.drain_may_end: asyncio.Event | None = None
        self.hello_may_end: asyncio.Event | None = None

    def start(self) -> None:
        self._tasks.append(asyncio.create_task(self._accept()))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        for link in self.links.values():
            link.end.close()

    async def ask(self, name: str, **fields: Any) -> dict[str, Any]:
        """A request to torpord. Raises Refused."""
        id_, self._next_id = self._next_id, self._next_id + 1
        answer = self._answers[id_] = asyncio.get_running_loop().create_future()
        self._send({"id": id_, "ask": {name: fields}})
        message = await asyncio.wait_for(answer, 60)
        if "error" in message:
            raise Refused(f"{message['error']['code']}: {message['error']['message']}")
        return dict(message["ok"])

    async def wake(self, **fields: Any) -> PeerLink:
        """Wakes, and gives the link of what was woken."""
        woken = await self.ask("wake", **fields)
        return self.links[woken["instance"], woken["generation"]]

    async def idle(self, link: PeerLink) -> bool:
        answer = await self.ask("idle", instance=link.instance, generation=link.generation)
        return bool(answer["parked"])

    def tell(self, name: str, link: PeerLink, **fields: Any) -> None:
        """A notice about a link."""
        which = {"instance": link.instance, "generation": link.generation}
        self.usage[link.instance] = fields
        self._send({"tell": {name: which | fields}})

    def lose(self, link: PeerLink) -> None:
        """The notice that its VM has closed a link."""
        which = {"instance": link.instance, "generation": link.generation}
        counts = self.usage.get(link.instance, {})
        self._send({"tell": {"link_lost": which | counts | {"link": link.attachment["link"]}}})

    async def until_asked(self, name: str) -> None:
        """Waits until torpord has asked for something."""
        while all(asked != name for asked, _ in self.asked):  # noqa: ASYNC110 -- tests only
            await asyncio.sleep(0.01)

    def forget_everything(self) -> None:
        """As a proxy that was started anew: no connection, no links."""
        for link in list(self.links.values()):
            asyncio.get_running_loop().remove_reader(link.end)
            link.end.close()
        self.links.clear()
        self.hang_up()

    def send_raw(self, datagram: bytes) -> None:
        """Whatever it is; nothing hangs up."""
        if not datagram:
            self.hang_up()
        elif self._connection is not None:
            self._connection.send(datagram)

    def hang_up(self) -> None:
        """The connection is lost; the links are kept."""
        self.connected.clear()
        if self._connection is not None:
            self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self, document: dict[str, Any]) -> None:
        assert self._connection is not None
        body = json.dumps(document).encode()
        self._connection.send(_HEADER.pack(b"TPPX", 1, 0, len(body), 0) + body)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            connection.setblocking(False)
            self._connection = connection
            gone = asyncio.Event()
            loop.add_reader(connection, self._readable, connection, gone)
            await gone.wait()
            loop.remove_reader(connection)
            connection.close()
            self._connection = None
            self.connected.clear()

    def _readable(self, connection: socket.socket, gone: asyncio.Event) -> None:
        try:
            datagram, descriptors, _, _ = socket.recv_fds(connection, 1 << 18, 4)
        except BlockingIOError:
            return
        except OSError:
            datagram = b""
        if not datagram:
            gone.set()
            return
        magic, version, count, length, zero = _HEADER.unpack_from(datagram)
        body = datagram[_HEADER.size :]
        assert (magic, version, zero) == (b"TPPX", 1, 0)
        assert (count, length) == (len(descriptors), len(body))
        message = json.loads(body)
        if "tell" in message:
            self.told.append(message["tell"])
        elif "ask" in message:
            ((name, fields),) = message["ask"].items()
            self.asked.append((name, fields))
            answer = {"id": message["id"], "ok": self._carry_out(name, fields, descriptors)}
            if name == "drain" and self.drain_may_end is not None:
                self._tasks.append(asyncio.create_task(self._drain(answer, fields["drain_ms"])))
            elif name == "hello" and self.hello_may_end is not None:
                self._tasks.append(asyncio.create_task(self._later(answer, self.hello_may_end)))
            else:
                self._send(answer)
        else:
            self._answers.pop(message["id"]).set_result(message)

    async def _drain(self, answer: dict[str, Any], drain_ms: int) -> None:
        assert self.drain_may_end is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.drain_may_end.wait(), drain_ms / 1000)
        self._send(answer)

    async def _later(self, answer: dict[str, Any], may_end: asyncio.Event) -> None:
        await may_end.wait()
        self._send(answer)

    def _carry_out(self, name: str, fields: dict[str, Any], descriptors: Any) -> dict[str, Any]:
        if name == "hello":
            self.connected.set()
            links = [
                {"instance": i, "generation": g, **self.usage.get(i, {})} for i, g in self.links
            ]
            return {"version": "test", "pid": os.getpid(), "links": links}
        if name == "ports":
            behind = sorted(port for port in self.ports | {80, 443} if port > fields["after"])
            return {"ports": behind[:PORTS_PAGE], "more": len(behind) > PORTS_PAGE}
        if name == "listen":
            self.ports.add(fields["port"])
        if name == "close":
            self.ports.discard(fields["port"])
        if name == "attach":
            (descriptor,) = descriptors
            end = socket.socket(fileno=descriptor)
            end.setblocking(False)
            link = PeerLink(fields["instance"], fields["generation"], end, fields)
            former = self.links.get((link.instance, link.generation))
            if former is not None:
                asyncio.get_running_loop().remove_reader(former.end)
                former.end.close()
            self.links[link.instance, link.generation] = link
            asyncio.get_running_loop().add_reader(end, self._frames, link)
        if name in ("park", "drain"):
            return {"in_flight": 0} | self.usage.get(fields["instance"], {})
        return {}

    def _frames(self, link: PeerLink) -> None:
        try:
            message = link.end.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            asyncio.get_running_loop().remove_reader(link.end)
            link.end.close()
            if self.links.get((link.instance, link.generation)) is link:
                del self.links[link.instance, link.generation]
            link.closed.set()
            return
        while message:
            stream, kind, _, length, _ = _FRAME.unpack_from(message)
            payload = message[16 : 16 + length]
            message = message[16 + (length + 7) // 8 * 8 :]
            if kind == _DATA and stream in (1, 2):
                link.output += payload
                link.end.send(_FRAME.pack(stream, _CREDIT, 0, 0, length))
                data = base64.b64encode(payload).decode()
                notice = {"instance": link.instance, "generation": link.generation, "data": data}
                if self._connection is not None:
                    self._send({"tell": {"output": notice}})

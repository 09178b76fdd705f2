"""torpord's end of the socket to the proxy (docs/proxy-socket.md)."""

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from torpor.controller.errors import Code, ItemError
from torpor.controller.links import (
    PUBLIC,
    Attachment,
    Egress,
    Traffic,
    Waiting,
    Why,
    socket_pair,
)
from torpor.envelope import HEADER_BYTES, Envelope
from torpor.tasks import Tasks

VERSION = 1
MAX_BODY_BYTES = 128 << 10
MAX_BEHIND_BYTES = 16 << 20
"""What may wait for a proxy that does not read; beyond it the connection ends."""
RETRY_S = 0.2
ANSWER_S = 30.0
"""How long the proxy may take for an answer that does not wait for requests."""
_ENVELOPE = Envelope(b"TPPX", VERSION)


WAITING_MAX = 16_384
"""As many as may wait at the proxy."""


class ProxyGoneError(ConnectionError):
    """There is no proxy now, or it went away before it answered."""


class Wake(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request waits for an instance, or for one that a host name leads to."""

    host: str | None = None
    port: int | None = None
    instance: str | None = None
    without: tuple[str, ...] = msgspec.field(default=(), name="not")
    """Instances that failed this request, or are at their limit."""


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link that the proxy has."""

    instance: str
    generation: int
    quiet: bool = False
    """The proxy sends nothing on it: it is parked, or was asked to be."""
    link: int | None = None
    """Which of the generation's links (`Attachment.link`), where it is one that was lost."""
    requests: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0

    @property
    def traffic(self) -> Traffic:
        """What went over it."""
        return Traffic(self.requests, self.rx_bytes, self.tx_bytes)


class _Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instance: str
    generation: int
    data: bytes


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wake: Wake | None = None
    idle: Link | None = None


class _Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    output: _Output | None = None
    link_lost: Link | None = None
    used_up: Link | None = None


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: int = 0
    ask: _Asked | None = None
    ok: dict[str, Any] | None = None
    error: _Error | None = None
    tell: _Told | None = None


_decode = msgspec.json.Decoder(_Message).decode
_encode = msgspec.json.Encoder().encode


class Woken(msgspec.Struct, frozen=True):
    """An instance that runs, and whose link was attached."""

    group: str | None
    instance: str
    generation: int


class WakeError(Exception):
    """Why a wake is refused: `unknown`, `stopped`, `busy` or `failed`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Handler(Protocol):
    """Who answers the proxy."""

    async def wake(self, wake: Wake, soon: Callable[[Woken], None]) -> Woken:
        """Raises WakeError. `soon` may be called before: then that is the answer."""

    async def idle(self, link: Link) -> str | None:
        """Puts a silent VM into standby: None when that is durable, else why it goes on."""

    def output(self, instance: str, data: bytes) -> None:
        """Bytes of a VM's console."""

    def noted(self, link: Link) -> None:
        """So much has gone over a link."""

    async def used_up(self, link: Link) -> None:
        """A VM has had as many requests as it may, and gets no more."""

    async def link_lost(self, link: Link) -> None:
        """A VM has closed its end of a link that was in use, or broke the protocol on it."""

    async def connected(self, ports: list[int], links: list[Link], since_ns: int) -> None:
        """There is a proxy now, these are the ports where it listens and the links that it had.

        Those that were attached since then (CLOCK_MONOTONIC) need not be among them.
        """


class ProxyClient:
    """The connection to the proxy, made again whenever it is lost."""

    def __init__(self, path: Path, hello: dict[str, Any], egress: Egress = PUBLIC) -> None:
        self._path = path
        self._hello = hello
        self._public_ports: dict[str, int] = hello.get("public_ports", {})
        self._egress = msgspec.to_builtins(egress)
        self._handler: Handler
        self._socket: socket.socket | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 1
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._behind_bytes = 0
        self._lost = asyncio.Event()
        self._tasks = Tasks()
        self._running: asyncio.Task[None] | None = None
        self._buffer = bytearray(HEADER_BYTES + MAX_BODY_BYTES)
        self.ready = asyncio.Event()
        """Set while there is a proxy that was told everything."""

    def start(self, handler: Handler) -> None:
        """Begins to look for the proxy."""
        self._handler = handler
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Leaves the proxy to itself."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._tasks.cancel()
        self._disconnect()

    # Connection ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            since_ns = time.monotonic_ns()
            try:
                self._connect()
            except OSError:
                await asyncio.sleep(RETRY_S)
                continue
            try:
                answer = await self.ask("hello", self._hello)
                # A port that was left to the proxy has the number that it got.
                self._public_ports = msgspec.convert(
                    answer.get("public_ports", self._public_ports), dict[str, int]
                )
                links = msgspec.convert(answer.get("links", []), list[Link])
                while answer.get("more"):
                    answer = await self.ask("links", {"after": links[-1].instance})
                    links += msgspec.convert(answer["links"], list[Link])
                ports = await self._ports()
                await self._handler.connected(ports, links, since_ns)
                self.ready.set()
                await self._lost.wait()
            except (OSError, ItemError, msgspec.ValidationError):
                await asyncio.sleep(RETRY_S)
            finally:
                self.ready.clear()
                self._disconnect()

    async def _ports(self) -> list[int]:
        ports = [0]
        more = True
        while more:
            answer = await self.ask("ports", {"after": ports[-1]})
            ports += msgspec.convert(answer["ports"], list[int])
            more = bool(answer.get("more"))
        return ports[1:]

    def _connect(self) -> None:
        holder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.setblocking(False)
            connection.connect(f"/proc/self/fd/{holder}/{self._path.name}")
            _check_user(connection)
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(holder)
        self._socket = connection
        self._lost.clear()
        asyncio.get_running_loop().add_reader(connection.fileno(), self._readable)

    def _disconnect(self) -> None:
        connection, self._socket = self._socket, None
        if connection is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(connection.fileno())
        loop.remove_writer(connection.fileno())
        connection.close()
        while self._waiting:
            _close_all(self._waiting.popleft()[1])
        self._behind_bytes = 0
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ProxyGoneError("the proxy is gone"))
        self._lost.set()

    def _readable(self) -> None:
        # As many as there are, so that a burst costs one turn of the loop.
        while self._socket is not None:
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if size == 0:
                self._disconnect()
                return
            try:
                self._take(_body(memoryview(self._buffer)[:size]))
            except (ValueError, msgspec.MsgspecError):
                self._disconnect()
                return

    def _take(self, message: _Message) -> None:
        if message.tell is not None:
            if message.tell.output is not None:
                its = message.tell.output
                self._handler.output(its.instance, its.data)
            elif message.tell.used_up is not None:
                self._tasks.start(self._handler.used_up(message.tell.used_up))
            elif message.tell.link_lost is not None:
                self._tasks.start(self._handler.link_lost(message.tell.link_lost))
        elif message.ask is not None:
            if message.ask.wake is not None:
                self._tasks.start(self._answer_wake(message.id, message.ask.wake))
            elif message.ask.idle is not None:
                self._tasks.start(self._answer_idle(message.id, message.ask.idle))
            else:
                raise ValueError("a request without a name")
        else:
            answer = self._answers.get(message.id)
            if answer is None or answer.done():
                return
            if message.error is not None:
                code = Code.FAILED
                answer.set_exception(ItemError(code, f"The proxy: {message.error.message}"))
            else:
                answer.set_result(message.ok or {})

    async def _answer_wake(self, id_: int, wake: Wake) -> None:
        asked_on, is_answered = self._socket, False

        def answer(woken: Woken) -> None:
            nonlocal is_answered
            if not is_answered:
                is_answered = True
                self._reply(asked_on, {"id": id_, "ok": woken})

        try:
            woken = await self._handler.wake(wake, answer)
        except WakeError as error:
            if not is_answered:
                self._refuse(asked_on, id_, error.code, str(error))
        except Exception as error:
            if not is_answered:
                self._refuse(asked_on, id_, "failed", f"{type(error).__name__}: {error}")
            raise
        else:
            answer(woken)

    async def _answer_idle(self, id_: int, link: Link) -> None:
        asked_on = self._socket
        try:
            why = await self._handler.idle(link)
        except Exception as error:
            self._refuse(asked_on, id_, "failed", f"{type(error).__name__}: {error}")
            raise
        if why is None:
            self._reply(asked_on, {"id": id_, "ok": {"parked": True}})
        else:
            self._reply(asked_on, {"id": id_, "ok": {"parked": False, "why": why}})

    def _refuse(self, asked_on: socket.socket | None, id_: int, code: str, message: str) -> None:
        self._reply(asked_on, {"id": id_, "error": {"code": code, "message": message}})

    def _reply(self, asked_on: socket.socket | None, body: dict[str, Any]) -> None:
        """Answers, unless there is another proxy by now: its own requests have the same numbers."""
        if self._socket is asked_on:
            self._send(body)

    # Sending ------------------------------------------------------------------------------------

    async def ask(
        self,
        name: str,
        fields: dict[str, Any],
        descriptors: Sequence[int] = (),
        *,
        within_s: float = ANSWER_S,
    ) -> dict[str, Any]:
        """Asks the proxy. Raises ProxyGoneError, TimeoutError, or ItemError if it refuses."""
        if self._socket is None:
            raise ProxyGoneError("there is no proxy now")
        id_ = self._next_id
        self._next_id += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[id_] = answer
        try:
            self._send({"id": id_, "ask": {name: fields}}, descriptors)
            return await asyncio.wait_for(answer, within_s)
        finally:
            self._answers.pop(id_, None)

    def post(self, name: str, fields: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Asks without waiting for the answer, which says nothing new."""
        id_ = self._next_id
        self._next_id += 1
        self._send({"id": id_, "ask": {name: fields}}, descriptors)

    def tell(self, name: str, fields: dict[str, Any]) -> None:
        """Sends a notice."""
        self._send({"tell": {name: fields}})

    def _send(self, document: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        connection = self._socket
        if connection is None:
            return
        body = _encode(document)
        datagram = _ENVELOPE.wrap(body, len(descriptors))
        if not self._waiting:
            try:
                if descriptors:
                    socket.send_fds(connection, [datagram], list(descriptors))
                else:
                    connection.send(datagram)
            except BlockingIOError:
                pass
            except OSError:
                self._disconnect()
                return
            else:
                return
        self._behind_bytes += len(datagram)
        if self._behind_bytes > MAX_BEHIND_BYTES:
            self._disconnect()
            return
        self._waiting.append((datagram, [os.dup(one) for one in descriptors]))
        asyncio.get_running_loop().add_writer(connection.fileno(), self._writable)

    def _writable(self) -> None:
        while self._waiting and self._socket is not None:
            datagram, descriptors = self._waiting[0]
            try:
                socket.send_fds(self._socket, [datagram], descriptors)
            except BlockingIOError:
                return
            except OSError:
                self._disconnect()
                return
            self._waiting.popleft()
            self._behind_bytes -= len(datagram)
            _close_all(descriptors)
        if self._socket is not None:
            asyncio.get_running_loop().remove_writer(self._socket.fileno())

    # Links --------------------------------------------------------------------------------------

    def connected(self) -> bool:
        """See Links."""
        return self.ready.is_set()

    def public_ports(self) -> dict[str, int]:
        return self._public_ports

    def pair(self) -> tuple[socket.socket, socket.socket] | None:
        """See Links."""
        return None if self._socket is None else socket_pair()

    def attach(self, what: Attachment, far: socket.socket) -> None:
        """See Links."""
        policy = what.policy
        with far:
            self.post(
                "attach",
                {
                    "instance": what.instance,
                    "name": what.name,
                    "generation": what.generation,
                    "link": what.link,
                    "group": what.group,
                    "resumed": what.resumed,
                    "scale_to_zero": {
                        "policy": policy.policy,
                        "cooldown_ms": policy.cooldown_time_ms,
                        "notify_ms": policy.notify_time_ms,
                    },
                    "egress": self._egress,
                    "requests_max": what.requests_max,
                },
                [far.fileno()],
            )

    def join(self, instance: str, generation: int, group: str) -> None:
        """See Links."""
        self.post("join", {"instance": instance, "generation": generation, "group": group})

    def allow(self, instance: str, generation: int, requests_max: int | None) -> None:
        """See Links."""
        fields = {"instance": instance, "generation": generation, "requests_max": requests_max}
        self.post("allow", fields)

    def detach(self, instance: str, generation: int, why: Why, *, parked: bool) -> None:
        """See Links."""
        fields = {"instance": instance, "generation": generation, "why": why, "parked": parked}
        self.post("detach", fields)

    async def drain(self, instance: str, generation: int, drain_ms: int) -> None:
        """See Links."""
        await self._quieten("drain", instance, generation, drain_ms)

    async def park(self, instance: str, generation: int, drain_ms: int) -> None:
        """See Links."""
        await self._quieten("park", instance, generation, drain_ms)

    async def _quieten(self, how: str, instance: str, generation: int, drain_ms: int) -> None:
        fields = {"instance": instance, "generation": generation, "drain_ms": drain_ms}
        with contextlib.suppress(ProxyGoneError, TimeoutError, ItemError):
            answer = await self.ask(how, fields, within_s=ANSWER_S + drain_ms / 1000)
            traffic = msgspec.structs.asdict(msgspec.convert(answer, Traffic))
            self._handler.noted(
                Link(instance=instance, generation=generation, quiet=True, **traffic)
            )

    def go_on(self, instance: str, generation: int) -> None:
        """See Links."""
        self.post("go_on", {"instance": instance, "generation": generation})

    async def listen(self, port: int, *, alone: bool) -> None:
        """See Links."""
        with contextlib.suppress(ProxyGoneError, TimeoutError):
            await self.ask("listen", {"port": port, "alone": alone})

    def close_port(self, port: int) -> None:
        """See Links."""
        self.post("close", {"port": port})

    def group(self, document: dict[str, Any]) -> None:
        """See Links."""
        self.post("group", document)

    def forget(self, hosts: Sequence[str]) -> None:
        """See Links."""
        if hosts:
            self.tell("forget", {"hosts": list(hosts)})

    def relieve(self, instances: int) -> None:
        """See Links."""
        self.tell("relieve", {"instances": instances})

    async def stats(self, after: str | None) -> dict[str, Any] | None:
        """See Links."""
        with contextlib.suppress(ProxyGoneError, TimeoutError):
            return await self.ask("stats", {} if after is None else {"after": after})
        return None

    async def waiting(self) -> list[Waiting]:
        """See Links."""
        found: list[Waiting] = []
        more = True
        while more and len(found) < WAITING_MAX:
            answer = await self.ask("waiting", {"skip": len(found)})
            found += msgspec.convert(answer["waiting"], list[Waiting])
            more = bool(answer["more"])
        return found


def _check_user(connection: socket.socket) -> None:
    """The proxy is of torpord's own user. Raises PermissionError."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid = int.from_bytes(peer[4:8], "little")
    if uid != os.geteuid():
        raise PermissionError(f"the proxy's socket is held by user {uid}")


def _body(datagram: memoryview) -> _Message:
    # The proxy sends no descriptors.
    return _decode(_ENVELOPE.unwrap(datagram, 0))


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)

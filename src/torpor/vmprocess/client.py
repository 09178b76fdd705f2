"""The controller's end of a control socket, for asyncio."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any, Self, TypeVar

import msgspec

from torpor.envelope import HEADER_BYTES
from torpor.vmprocess import messages
from torpor.vmprocess.messages import (
    Boot,
    Ended,
    Message,
    Prepare,
    ProtocolError,
    Ready,
    Refused,
    Restore,
    Status,
    Stored,
    Unlinked,
)

T = TypeVar("T")
_received = memoryview(bytearray(HEADER_BYTES + messages.MAX_BODY_BYTES))
"""For the datagram that is being read, of whichever process; what is kept of it is copied."""
PATIENCE_S = 10.0
"""A process with a command that is not answered yet is asked so often whether it is there."""
LOOKS, LOOK_S = 300, 0.1
"""How often is looked for its answer to that, and the pause between; counted, since the clock goes
on where machine or event loop stand still."""
DOUBTS = 60
"""One that is there, and still owes the same answer after so many times, is of no use either."""
_DESCRIPTORS_BYTES = socket.CMSG_LEN(messages.MAX_DESCRIPTORS * array.array("i").itemsize)


class VMProcess:
    """One VM process. Commands may be sent without waiting; each waits for its own reply.

    A process answers `query` at once, whatever else it does. One that does not, or owes a reply for
    ten minutes, hangs or was taken over by its guest: it is lost, as one that is gone.
    Descriptors that are handed in stay the caller's. `events` gets `Ready`, `Unlinked`, and
    `Ended` as the last.
    """

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        """As the kernel says (SO_PEERCRED)."""
        self.events: asyncio.Queue[Ready | Unlinked | Ended] = asyncio.Queue()
        self._socket = connection
        self._replies: dict[int, asyncio.Future[Message]] = {}
        self._next_id = 1
        self._ended: Ended | None = None
        self._doubt: asyncio.TimerHandle | None = None
        self._doubted, self._doubts = 0, 0
        self._look: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection.fileno(), self._readable)

    @classmethod
    async def connect(cls, path: str, *, timeout_s: float = 10.0) -> Self:
        """Connect to a VM process by the path of its socket, however long that is."""
        directory, _, name = path.rpartition("/")
        holder = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.setblocking(False)
            deadline = asyncio.get_running_loop().time() + timeout_s
            pause_s = 0.002
            while True:
                try:
                    connection.connect(f"/proc/self/fd/{holder}/{name}")
                    break
                except (ConnectionRefusedError, BlockingIOError):
                    # Bound, and not listening yet.
                    if asyncio.get_running_loop().time() > deadline:
                        raise
                    await asyncio.sleep(pause_s)
                    pause_s = min(1.5 * pause_s, 0.02)
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(holder)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return cls(connection, int.from_bytes(credentials[:4], "little"))

    @property
    def ended(self) -> Ended | None:
        """How the VM ended, once it has."""
        return self._ended

    async def query(self) -> Status:
        """How the process is."""
        return await self._answer("query", {}, _status)

    async def boot(self, boot: Boot, *, image: int, console: int | None = None) -> None:
        """Make a VM that will boot a program with `run`."""
        await self._with_console("boot", messages.arguments_of(boot), [image], console)

    async def prepare(
        self,
        prepare: Prepare,
        *,
        template: int,
        memory: int | None,
        image: int,
        warm_base: int | None = None,
    ) -> None:
        """Make a VM of a template; `memory` is what `unpack` filled.

        Without it the template's pages arrive from its file, which has to stay as it is, when they
        are touched.
        """
        arguments = messages.arguments_of(prepare) | {"late": memory is None}
        given = (template, memory, image, warm_base)
        descriptors = [descriptor for descriptor in given if descriptor is not None]
        await self._command("prepare", arguments, descriptors)

    async def touch(self) -> None:
        """Have all mapped, in a VM at rest, that instances of its warm base need soon."""
        await self._command("touch", {})

    async def unpack(self, template_digest: str, *, template: int, memory: int) -> int:
        """Fill an empty memfd (MFD_ALLOW_SEALING) with a template's memory, and seal it."""
        arguments = {"template": template_digest}
        return await self._answer("unpack", arguments, _number("bytes"), [template, memory])

    async def learn(
        self, template_digest: str, *, template: int, memory: int, deltas: list[int]
    ) -> int:
        """Make a warm base of sibling deltas; a sealed memfd with its file, the caller's."""
        arguments = {"template": template_digest}
        return await self._answer("learn", arguments, _descriptor, [template, memory, *deltas])

    async def run(self) -> None:
        """Let a booted or stopped VM go on: also what takes a standby back."""
        await self._command("run", {})

    async def restore(
        self,
        restore: Restore,
        *,
        delta: int | None = None,
        console: int | None = None,
        sent: Callable[[], None] | None = None,
    ) -> int:
        """Put a state into a VM at rest and let it run; without a delta, its template's.

        Late chunks of the delta arrive from its file, which has to stay as it is, when they are
        touched. `sent` is called when the process has the command, and has not answered it yet.
        Returns the nanoseconds from the process's receiving the command to the guest's running.
        """
        arguments = messages.arguments_of(restore)
        descriptors = [] if delta is None else [delta]
        if console is not None:
            descriptors.append(console)
        arguments["console"] = console is not None
        return await self._answer("restore", arguments, _number("took_ns"), descriptors, sent)

    async def standby(self, generation: int, *, within_s: float, busy: bool = False) -> Stored:
        """Stop the VM and store it. `reset` it once that is committed, or `run` it."""
        return await self._store("standby", generation, within_s, busy)

    async def checkpoint(self, generation: int, *, within_s: float, busy: bool = False) -> Stored:
        """Store the VM, which goes on."""
        return await self._store("checkpoint", generation, within_s, busy)

    async def signal(self, number: int) -> None:
        """Send a signal to the program of a running VM."""
        await self._command("signal", {"number": number})

    async def link(self, link: int) -> None:
        """Give a running or stopped VM another link, in the place of the one from before.

        Connections to the outside are reset in the guest; console windows begin whole.
        """
        await self._command("link", {}, [link])

    async def template(self, uuid: str, generation: int = 0) -> Stored:
        """Store a booted VM as a template, or as the state of an instance, of that generation."""
        body = {"uuid": uuid, "generation": generation}
        return await self._answer("template", body, _stored)

    async def sibling(
        self, template: str, uuid: str, generation: int, *, file: int, memory: int
    ) -> Stored:
        """Store a booted VM that is ready as what differs from a sibling's template."""
        arguments = {"template": template, "uuid": uuid, "generation": generation}
        return await self._answer("sibling", arguments, _stored, [file, memory])

    async def reset(self) -> bool:
        """Put a stopped VM back to rest. False: end the process, it can't be used again."""
        return not await self._answer("reset", {}, lambda reply: bool(reply.body["ok"]["retired"]))

    async def stop(self) -> None:
        """End the process."""
        try:
            await self._command("stop", {})
        except (ConnectionError, Refused):
            if self._ended is None:
                raise

    def close(self) -> None:
        """Leave the process to itself."""
        self._lose("the connection was closed")

    async def _store(self, command: str, generation: int, within_s: float, busy: bool) -> Stored:
        arguments = {"generation": generation, "busy": busy, "within_ms": round(within_s * 1000)}
        return await self._answer(command, arguments, _stored)

    async def _with_console(
        self, command: str, arguments: dict[str, Any], descriptors: list[int], console: int | None
    ) -> Message:
        last = [] if console is None else [console]
        arguments = arguments | {"console": console is not None}
        return await self._command(command, arguments, [*descriptors, *last])

    async def _answer(
        self,
        command: str,
        arguments: dict[str, Any],
        read: Callable[[Message], T],
        descriptors: list[int] | None = None,
        sent: Callable[[], None] | None = None,
    ) -> T:
        """What `read` makes of the reply. A process whose reply lacks something is lost."""
        reply = await self._command(command, arguments, descriptors, sent)
        try:
            return read(reply)
        except (LookupError, TypeError, ValueError, ProtocolError) as error:
            _close_all(reply.descriptors)
            why = f"the VM process broke the protocol: {error!r} in its reply to {command}"
            self._lose(why)
            raise ConnectionError(why) from error

    async def _command(
        self,
        command: str,
        arguments: dict[str, Any],
        descriptors: list[int] | None = None,
        sent: Callable[[], None] | None = None,
    ) -> Message:
        if self._ended is not None:
            why = self._ended.message or self._ended.reason
            raise ConnectionError(f"the VM process has ended: {why}")
        request_id = self._next_id
        self._next_id += 1
        datagram = messages.encode(request_id, command, arguments, len(descriptors or []))
        reply: asyncio.Future[Message] = self._loop.create_future()
        self._replies[request_id] = reply
        try:
            # Commands are few and small: a socket that takes no more is one that nobody reads.
            socket.send_fds(self._socket, [datagram], descriptors or [])
            if sent is not None:
                sent()
            self._be_patient()
            message = await reply
        finally:
            self._replies.pop(request_id, None)
        if "error" in message.body:
            _close_all(message.descriptors)
            raise Refused(message.body["error"]["code"], message.body["error"]["message"])
        return message

    def _be_patient(self) -> None:
        """Doubts the process after a while, unless it is doubted already."""
        if self._doubt is None and self._look is None:
            self._doubt = self._loop.call_later(PATIENCE_S, self._begin_look)

    def _begin_look(self) -> None:
        self._doubt = None
        if not self._replies:
            return
        oldest = next(iter(self._replies))
        self._doubts = self._doubts + 1 if oldest == self._doubted else 1
        self._doubted = oldest
        self._look = self._loop.create_task(self._look_after_it())

    async def _look_after_it(self) -> None:
        query = asyncio.ensure_future(self._command("query", {}))
        for _ in range(LOOKS):
            if (await asyncio.wait({query}, timeout=LOOK_S))[0]:
                break
        else:
            query.cancel()
            self._lose("it answers nothing")
        if self._doubts > DOUBTS:
            self._lose("it has not done for ten minutes what it was told")
        with contextlib.suppress(asyncio.CancelledError, ConnectionError, Refused):
            await query
        self._look = None
        if self._replies and self._ended is None:
            self._be_patient()

    def _readable(self) -> None:
        try:
            size, more, _, _ = self._socket.recvmsg_into(
                [_received], _DESCRIPTORS_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(str(error))
            return
        if not size:
            self._lose("the process is gone")
            return
        descriptors = _descriptors(more)
        try:
            self._take(messages.decode(_received[:size], descriptors))
        except (ProtocolError, ValueError, LookupError, TypeError) as error:
            _close_all(descriptors)
            self._lose(f"the VM process broke the protocol: {error!r}")

    def _take(self, message: Message) -> None:
        if "event" in message.body:
            if message.descriptors:
                raise ProtocolError("an event with descriptors")
            event = messages.event_of(message.body)
            if isinstance(event, Ended):
                self._ended = event
            self.events.put_nowait(event)
            return
        reply = self._replies.get(message.body["id"])
        if reply is None or reply.done():
            # Whoever asked has stopped waiting.
            _close_all(message.descriptors)
        else:
            reply.set_result(message)

    def _lose(self, why: str) -> None:
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._doubt is not None:
            self._doubt.cancel()
        if self._ended is None:
            self._ended = Ended(reason="lost", message=why)
            self.events.put_nowait(self._ended)
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(ConnectionError(f"the VM process is lost: {why}"))


def _status(reply: Message) -> Status:
    return msgspec.convert(reply.body["ok"], Status)


def _number(name: str) -> Callable[[Message], int]:
    return lambda reply: msgspec.convert(reply.body["ok"][name], int)


def _descriptor(reply: Message) -> int:
    if len(reply.descriptors) != 1:
        raise ProtocolError("a reply without its descriptor")
    return reply.descriptors[0]


def _stored(reply: Message) -> Stored:
    return msgspec.convert(reply.body["ok"] | {"descriptor": _descriptor(reply)}, Stored)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)

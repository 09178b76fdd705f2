"""A VM that runs in a VM process, as the controller has it."""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from torpor.controller.errors import BusyError, Code, ItemError
from torpor.controller.vm import Saved, Usage
from torpor.errors import TorporError
from torpor.store import Base, Content, OpenFile
from torpor.vmhost.worker import Worker
from torpor.vmprocess import Refused, Stored

T = TypeVar("T")
HELD_MAX_BYTES = 4 << 20
"""Larger files stay in the memory that the VM process put them into."""
CONSTANT = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
WHOLE_S = 10.0
"""How long a VM may take to stop that is to be stored whole."""


class RunningVm:
    """One instance's time in a VM process."""

    def __init__(
        self,
        worker: Worker,
        uuid: str,
        template: Base | None,
        warm: Base | None,
        free: Callable[[Worker], Coroutine[Any, Any, None]],
        load: Callable[[Base], Awaitable[tuple[Content, int]]],
    ) -> None:
        self.worker = worker
        self.pid = worker.pid
        self.started_ticks = worker.started_ticks
        self._uuid = uuid
        self._template = template
        self._warm = warm
        self._free = free
        self._load = load

    async def go_on(self) -> None:
        await self._ask("go on", self.worker.process.run())

    async def template(self) -> Saved:
        try:
            return await self._whole(0)
        except BusyError:
            # Something came in between, and has to get to the guest first.
            await self.go_on()
            return await self.standby(0, busy=True, within_s=WHOLE_S)

    async def sibling(self, template: Base, generation: int) -> Saved:
        try:
            return await self._sibling(template, generation)
        except BusyError:
            # As for a template.
            await self.go_on()
            stopped = await self._stopped(generation, busy=True, within_s=WHOLE_S)
            os.close(stopped.descriptor)
            return await self._sibling(template, generation)

    async def _sibling(self, template: Base, generation: int) -> Saved:
        try:
            file, memory = await self._load(template)
        except (Refused, OSError, TorporError) as error:
            raise ItemError(Code.FAILED, f"The sibling's template is of no use: {error}") from error
        work = self.worker.process.sibling(
            template.digest.hex(),
            _hex(self._uuid),
            generation,
            file=file.file.number,
            memory=memory,
        )
        stored = await self._ask("be stored as a sibling", work)
        return _saved(stored, template)

    async def _whole(self, generation: int) -> Saved:
        work = self.worker.process.template(_hex(self._uuid), generation)
        return _saved(await self._ask("be stored", work), self._template, self._warm)

    async def standby(self, generation: int, *, busy: bool, within_s: float) -> Saved:
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + within_s
        while True:
            stored = await self._stopped(generation, busy=busy, within_s=within_s)
            if self._template is not None:
                return _saved(stored, self._template, self._warm)
            os.close(stored.descriptor)
            try:
                whole = await self._whole(generation)
            except ItemError as error:
                await self.go_on()
                # What has come meanwhile has to get to the guest first, and then it is tried again.
                if not isinstance(error, BusyError) or loop.time() > ends_s:
                    raise
            else:
                return msgspec.structs.replace(whole, next_deadline_ns=stored.next_deadline_ns)

    async def _stopped(self, generation: int, *, busy: bool, within_s: float) -> Stored:
        work = self.worker.process.standby(generation, within_s=within_s, busy=busy)
        return await self._ask("be put into standby", work)

    async def has_changed(self, generation: int) -> bool:
        status = await self._ask("be looked at", self.worker.process.query())
        return not status.still or status.stored_generation != generation

    async def checkpoint(self, generation: int, *, busy: bool, within_s: float) -> Saved:
        if self._template is None:
            # A whole state can only be taken of a VM that is stopped.
            saved = await self.standby(generation, busy=busy, within_s=within_s)
            await self.go_on()
            return saved
        work = self.worker.process.checkpoint(generation, within_s=within_s, busy=busy)
        return _saved(await self._ask("be checkpointed", work), self._template, self._warm)

    async def release(self) -> None:
        self.worker.listener = None
        await self._free(self.worker)

    async def stop(self, *, force: bool, timeout_s: float) -> None:
        if not force:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    if await self._terminate():
                        await self.worker.dead()
                        return
        self.worker.kill()
        await self.worker.dead()

    async def _terminate(self) -> bool:
        """Sends SIGTERM to the program; whether it got it."""
        try:
            await self.worker.process.signal(signal.SIGTERM)
        except (Refused, ConnectionError):
            return False
        return True

    async def query(self) -> Usage:
        worker = self.worker
        cpu_time_ms = max(worker.cpu_time_ms() - worker.rested_cpu_ms, 0)
        return Usage(rss_bytes=worker.private_bytes(), cpu_time_ms=cpu_time_ms)

    async def link(self, end: socket.socket) -> None:
        with end:
            await self._ask("take another link", self.worker.process.link(end.fileno()))

    async def _ask(self, what: str, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except Refused as refused:
            message = f"The VM cannot {what}: {refused.message}"
            if refused.code == "busy":
                raise BusyError(message) from refused
            raise ItemError(Code.FAILED, message) from refused
        except ConnectionError as error:
            raise ItemError(Code.FAILED, f"The VM cannot {what}: {error}") from error


def received(descriptor: int) -> Content:
    """A file that a VM process made, whose descriptor is closed sooner or later. Raises ItemError.

    Only what is small is read.
    """
    file = OpenFile(descriptor)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_blocks * 512 < status.st_size:
        # It would take memory here that it took none of there.
        raise ItemError(Code.FAILED, "The VM process gave a file with holes, or none")
    with contextlib.suppress(OSError):  # of a file that has no seals
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & CONSTANT == CONSTANT:
            content = Content(file)
            if content.size_bytes > HELD_MAX_BYTES:
                return content
            return Content(os.pread(descriptor, content.size_bytes, 0))
    raise ItemError(Code.FAILED, "The VM process gave a file that it can still change")


def _saved(stored: Stored, template: Base | None, warm: Base | None = None) -> Saved:
    return Saved(
        received(stored.descriptor), template, warm, stored.next_deadline_ns, stored.drew_random
    )


def _hex(uuid: str) -> str:
    return uuid.replace("-", "")

"""VM processes under test: templates made from programs, VMs of them, and their consoles."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.harness import DEFAULT_ENVIRONMENT
from tests.snapshot.peer import TIMEOUT_S, Peer
from torpor.snapshot_format import digest_of
from torpor.vmprocess import Boot, Prepare, Ready, Restore, VMProcess, launch

OWNER = hashlib.sha256(b"the tests").hexdigest()


def read_descriptor(descriptor: int) -> bytes:
    """All of a file, and close it."""
    with os.fdopen(descriptor, "rb", closefd=True) as file:
        file.seek(0)
        return file.read()


def memory_file(data: bytes) -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, data)
    return descriptor


def digest_in_hex(file: bytes | int) -> str:
    """Of a snapshot's file or a descriptor of it, as VM processes are told it."""
    if isinstance(file, bytes):
        return digest_of(lambda at, size: file[at : at + size], len(file)).hex()
    return digest_of(lambda at, size: os.pread(file, size, at), os.fstat(file).st_size).hex()


@contextlib.asynccontextmanager
async def vm_process(directory: Path) -> AsyncIterator[VMProcess]:
    launched = await launch(directory / f"{secrets.token_hex(4)}.sock")
    try:
        yield launched.process
    except BaseException:
        await asyncio.sleep(0.1)
        while not launched.process.events.empty():
            print(launched.process.events.get_nowait())  # shown when the test fails
        raise
    finally:
        launched.process.close()
        launched.child.kill()
        launched.child.wait()


@dataclass(frozen=True)
class Template:
    """A template's file, its memory, and the image."""

    file: int
    data: bytes
    memory: int
    digest: str
    image: int

    def close(self) -> None:
        for descriptor in (self.file, self.memory, self.image):
            os.close(descriptor)


async def make_template(
    directory: Path,
    image_path: Path,
    argv: Iterable[str],
    *,
    memory_mib: int = 256,
    env: dict[str, str] | None = None,
) -> Template:
    """Boot a program until it is ready, and make a template of it."""
    image = os.open(image_path, os.O_RDONLY | os.O_CLOEXEC)
    async with vm_process(directory) as process:
        peer = Peer()
        peer.generous = False  # a VM that is sent something is not stored as a template
        assert peer.theirs is not None
        boot = Boot(
            owner=OWNER,
            image="00" * 32,
            memory_limit_bytes=memory_mib << 20,
            argv=tuple(argv),
            envp=tuple(f"{k}={v}" for k, v in {**DEFAULT_ENVIRONMENT, **(env or {})}.items()),
            host_name="template",
            uuid=secrets.token_hex(16),
            template=True,
        )
        await process.boot(boot, image=image, console=peer.theirs.fileno())
        peer.handed_over()
        await process.run()
        event = await asyncio.wait_for(process.events.get(), TIMEOUT_S)
        if not isinstance(event, Ready):
            with contextlib.suppress(TimeoutError, EOFError):
                while True:
                    print(await asyncio.wait_for(peer.line(), 1))
            raise EOFError(f"the program did not get ready: {event}")  # noqa: TRY004 - its end
        stored = await process.template(boot.uuid)
        data = read_descriptor(stored.descriptor)
        memory = os.memfd_create("template", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        file = memory_file(data)
        digest = digest_in_hex(data)
        await process.unpack(digest, template=file, memory=memory)
        peer.close()
    return Template(file, data, memory, digest, image)


class Sibling:
    """A VM process of a template, which is one instance after the other."""

    def __init__(self, process: VMProcess, template: Template) -> None:
        self.process = process
        self.template = template
        self.peer = Peer()

    @classmethod
    async def prepare(
        cls,
        process: VMProcess,
        template: Template,
        *,
        never_run: bool = False,
        late: bool = False,
        warm: bytes | None = None,
        touch: bool = False,
    ) -> Sibling:
        """With `late` of the template's file alone; with `warm` at that warm base."""
        warm_file = None if warm is None else memory_file(warm)
        await process.prepare(
            Prepare(
                template=template.digest,
                warm_base=None if warm is None else digest_in_hex(warm),
                never_run=never_run,
            ),
            template=template.file,
            memory=None if late else template.memory,
            image=template.image,
            warm_base=warm_file,
        )
        if warm_file is not None:
            os.close(warm_file)
        if touch:
            await process.touch()
        return cls(process, template)

    async def wake(
        self,
        uuid: str,
        generation: int,
        delta: bytes | int | None = None,
        *,
        peer: Peer | None = None,
    ) -> float:
        """Restore; returns how long the VM process took for it in seconds.

        `delta` is a file, or the caller's descriptor of it. `peer` has been parked, and its
        connections go on; without, there is a new one.
        """
        if peer is not self.peer:
            self.peer.close()
        self.peer = peer or Peer()
        assert self.peer.theirs is not None
        descriptor = memory_file(delta) if isinstance(delta, bytes) else delta
        took_ns = await self.process.restore(
            Restore(
                uuid=uuid,
                generation=generation,
                host_name=f"vm-{uuid[:8]}",
                delta=None if descriptor is None else digest_in_hex(descriptor),
            ),
            delta=descriptor,
            console=self.peer.theirs.fileno(),
        )
        self.peer.resume(generation)
        self.peer.handed_over()
        if descriptor is not None and descriptor != delta:
            os.close(descriptor)
        return took_ns / 1e9

    async def sleep(self, generation: int, *, busy: bool = False) -> bytes:
        """Standby and reset; returns the delta."""
        stored = await self.process.standby(generation, within_s=TIMEOUT_S, busy=busy)
        delta = read_descriptor(stored.descriptor)
        assert await self.process.reset(), "retired"
        return delta

    async def park(self, generation: int) -> bytes:
        """The same; the peer keeps its connections for the next `wake`."""
        await self.peer.be_quiet()
        delta = await self.sleep(generation)
        self.peer.park()
        return delta


def occurrences(pid: int, marker: bytes) -> int:
    """How often a byte string is in a process's writable memory."""
    found = 0
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            span, prot = line.split()[:2]
            if "w" not in prot:
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            while start < end:
                size = min(end - start, 16 << 20)
                try:
                    memory.seek(start)
                    found += memory.read(size).count(marker)
                except OSError:
                    break
                start += size
    return found

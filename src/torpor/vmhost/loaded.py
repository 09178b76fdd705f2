"""Templates in memory: unpacked once, shared by all VM processes of them.

One that is not unpacked yet can be had as well, for a VM process that unpacks what it needs. What
is shared is unpacked by a process in which no guest ever runs.
"""

import asyncio
import fcntl
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from torpor.controller.vm import BaseReader
from torpor.images import ImageStore
from torpor.store import Base, Content
from torpor.vmprocess import VMProcess

Helper = Callable[[], AbstractAsyncContextManager[VMProcess]]
"""A VM process that is to be none."""


@dataclass(slots=True)
class Loaded:
    """Descriptors of one template."""

    base: Base
    file: Content
    image: int
    memory: int | None = None
    """A sealed memfd that VM processes map privately; None until it is unpacked."""
    memory_bytes: int = 0
    warm: dict[int, Content] = field(default_factory=dict)
    """Files of its warm bases, by id."""
    used_s: float = 0.0

    def close(self) -> None:
        """Lets go of the memory; VM processes that have it keep it."""
        for descriptor in (self.image, self.memory):
            if descriptor is not None:
                os.close(descriptor)


class Templates:
    """What is loaded."""

    def __init__(self, images: ImageStore, read: BaseReader, helper: Helper) -> None:
        self._images = images
        self._read = read
        self._helper = helper
        self._loaded: dict[int, Loaded] = {}
        self._loading: dict[int, asyncio.Lock] = {}
        self._users: Counter[int] = Counter()
        """Of those locks, and who waits for them."""

    def all(self) -> list[Loaded]:
        """Every template that is loaded."""
        return list(self._loaded.values())

    async def open(self, base: Base) -> Loaded:
        """A template, unpacked or not. Raises StoreError, OSError."""
        async with self._one(base.id):
            return await self._opened(base)

    async def load(self, base: Base) -> tuple[Content, int]:
        """File and memory of a template, unpacked. Raises StoreError, OSError, Refused."""
        async with self._one(base.id):
            found = await self._opened(base)
            if found.memory is None:
                memory = os.memfd_create("template", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                try:
                    async with self._helper() as helper:
                        size = await helper.unpack(
                            base.digest.hex(), template=found.file.file.number, memory=memory
                        )
                except BaseException:
                    os.close(memory)
                    raise
                found.memory, found.memory_bytes = memory, size
            return found.file, found.memory

    async def _opened(self, base: Base) -> Loaded:
        found = self._loaded.get(base.id)
        if found is None:
            file = await self._read(base)
            image = hold_image(self._images, base.image)
            found = self._loaded[base.id] = Loaded(base, file, image)
        return found

    async def load_warm(self, loaded: Loaded, warm: Base) -> Content:
        """A warm base's file."""
        async with self._one(warm.id):
            if warm.id not in loaded.warm:
                loaded.warm[warm.id] = await self._read(warm)
            return loaded.warm[warm.id]

    def unload(self, template_id: int) -> None:
        """Lets go of a template that no process is to be made of for now."""
        if template_id in self._loading:
            return
        found = self._loaded.pop(template_id, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        """Lets go of all."""
        for found in self._loaded.values():
            found.close()
        self._loaded.clear()

    @asynccontextmanager
    async def _one(self, base_id: int) -> AsyncIterator[None]:
        lock = self._loading.setdefault(base_id, asyncio.Lock())
        self._users[base_id] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[base_id] -= 1
            if not self._users[base_id]:
                del self._users[base_id], self._loading[base_id]


def hold_image(images: ImageStore, digest: str) -> int:
    """A descriptor of an image's EROFS file that keeps it from collection."""
    return images.hold(images.resolve(digest))


def open_image(path: "os.PathLike[str]") -> int:
    """The same for an image whose file is known."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def owner_digest(owner: str) -> str:
    """How VM processes know an owner."""
    return hashlib.sha256(owner.encode()).hexdigest()

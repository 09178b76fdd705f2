"""Templates in memory: unpacked once, shared by all VM processes of them."""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from torpor.controller.vm import BaseReader
from torpor.images import ImageStore
from torpor.store import Base
from torpor.vmprocess import VMProcess


@dataclass(slots=True)
class Loaded:
    """Descriptors of one template."""

    base: Base
    file: int
    memory: int
    """A sealed memfd that VM processes map privately."""
    memory_bytes: int
    image: int
    warm: dict[int, int] = field(default_factory=dict)
    """Files of its warm bases, by id."""
    used_s: float = 0.0

    def close(self) -> None:
        """Lets go of the memory; VM processes that have it keep it."""
        for descriptor in (self.file, self.memory, self.image, *self.warm.values()):
            os.close(descriptor)


class Templates:
    """What is loaded."""

    def __init__(self, images: ImageStore, read: BaseReader) -> None:
        self._images = images
        self._read = read
        self._loaded: dict[int, Loaded] = {}
        self._loading: dict[int, asyncio.Lock] = {}

    def get(self, template_id: int) -> Loaded | None:
        """A template that is loaded, or None."""
        return self._loaded.get(template_id)

    def all(self) -> list[Loaded]:
        """Every template that is loaded."""
        return list(self._loaded.values())

    async def load(self, base: Base, helper: VMProcess) -> Loaded:
        """A template, unpacked by `helper` if it was not loaded. Raises StoreError, OSError."""
        async with self._one(base.id):
            found = self._loaded.get(base.id)
            if found is not None:
                return found
            content = await self._read(base)
            image = hold_image(self._images, base.image)
            file = memory_file("template-file", content)
            memory = os.memfd_create("template", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                size = await helper.unpack(template=file, memory=memory)
            except BaseException:
                for descriptor in (image, file, memory):
                    os.close(descriptor)
                raise
            found = Loaded(base, file, memory, size, image)
            self._loaded[base.id] = found
            return found

    async def load_warm(self, loaded: Loaded, warm: Base) -> int:
        """A warm base's file."""
        async with self._one(warm.id):
            if warm.id not in loaded.warm:
                content = await self._read(warm)
                loaded.warm[warm.id] = memory_file("warm-base", content)
            return loaded.warm[warm.id]

    def unload(self, template_id: int) -> None:
        """Lets go of a template that no process is to be made of for now."""
        found = self._loaded.pop(template_id, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        """Lets go of all."""
        for template_id in list(self._loaded):
            self.unload(template_id)

    @asynccontextmanager
    async def _one(self, base_id: int) -> AsyncIterator[None]:
        lock = self._loading.setdefault(base_id, asyncio.Lock())
        async with lock:
            yield
        if not lock.locked():
            self._loading.pop(base_id, None)


def memory_file(name: str, content: bytes) -> int:
    """A memfd with this content."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor


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

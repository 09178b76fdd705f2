"""From an instance's configuration to the machine that a VM process is told to be."""

import time

from torpor.controller.errors import Code, ItemError
from torpor.controller.groups import ServiceGroups
from torpor.controller.model import Config
from torpor.controller.vm import Machine
from torpor.errors import TorporError
from torpor.images import ImageStore
from torpor.images.records import ResolvedImage
from torpor.store import InstanceRow, Store

USER = "torpord"
"""The kind of user that images have in instances and templates."""


class Machines:
    """Puts image, configuration and services together."""

    def __init__(self, store: Store, images: ImageStore, groups: ServiceGroups) -> None:
        self._store = store
        self._groups = groups
        self._images = images
        self._referred: dict[str, ResolvedImage] = {}
        self._used_s: dict[str, float] = {}
        """When images were asked for last, or found to be needed; by the steady clock."""

    def resolve(self, image: str) -> ResolvedImage:
        """The image of a name, kept from being collected from now on. Raises ItemError."""
        found = self._referred.get(image)
        if found is None or not found.erofs.exists():  # what a digest stands for never changes
            try:
                found = self._images.resolve(image)
                if found.digest not in self._referred:
                    self._images.refer(USER, found.digest, found.digest)
                self._referred[found.digest] = found
            except TorporError as error:
                raise ItemError(Code.NOT_FOUND, str(error)) from error
        self._used_s[found.digest] = time.monotonic()
        return found

    async def release_unused(self, unused_s: float) -> int:
        """Lets images be collected that nothing has needed for so long; how many.

        The time covers whoever has asked for an image and has not recorded an instance of it yet.
        """
        count = 0
        for digest in self._images.referred(USER):
            used_s = self._used_s.setdefault(digest, time.monotonic())
            if time.monotonic() - used_s < unused_s:
                continue
            if await self._store.image_uses.has(digest):
                self._used_s[digest] = time.monotonic()
            elif self._used_s[digest] == used_s:
                self._images.release(USER, digest)
                self._referred.pop(digest, None)
                del self._used_s[digest]
                count += 1
        return count

    def of(self, row: InstanceRow, config: Config) -> Machine:
        """The machine of an instance. Raises ItemError if its image is gone or has no program."""
        image = self.resolve(config.image_digest or config.image)
        argv = image.config.argv(config.args or ())
        if not argv:
            raise ItemError(
                Code.INVALID,
                f"Image '{config.image}' names no program: give 'args'",
                uuid=row.uuid,
                name=row.name,
            )
        env = dict(entry.split("=", 1) for entry in image.config.env)
        served = () if row.service_id is None else self._groups.destinations(row.service_id)
        return Machine(
            instance=row.uuid,
            name=row.name,
            owner=self._store.owners.by_id(row.owner_id).uuid,
            hostname=config.hostname or row.name[:63],
            memory_mb=row.memory_mb,
            image=image.erofs,
            image_digest=image.digest,
            argv=tuple(argv),
            env={**env, **config.env},
            workdir=image.config.workdir,
            user=image.config.user,
            ports=served or image.config.tcp_ports,
        )

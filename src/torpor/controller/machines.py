"""From an instance's configuration to the machine that a VM process is told to be."""

from torpor.controller.errors import Code, ItemError
from torpor.controller.model import Config, service_of
from torpor.controller.vm import Machine
from torpor.errors import TorporError
from torpor.images import ImageStore
from torpor.images.records import ResolvedImage
from torpor.store import InstanceRow, Store


class Machines:
    """Puts image, configuration and services together."""

    def __init__(self, store: Store, images: ImageStore) -> None:
        self._store = store
        self._images = images
        self._referred: dict[str, ResolvedImage] = {}

    def resolve(self, image: str) -> ResolvedImage:
        """The image of a name, kept from being collected from now on. Raises ItemError."""
        known = self._referred.get(image)
        if known is not None and known.erofs.exists():  # what a digest stands for never changes
            return known
        try:
            found = self._images.resolve(image)
            if found.digest not in self._referred:
                self._images.refer("torpord", found.digest, found.digest)
            self._referred[found.digest] = found
        except TorporError as error:
            raise ItemError(Code.NOT_FOUND, f"No image '{image}': {error}") from error
        return found

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
        service = None if row.service_id is None else self._store.services.by_id(row.service_id)
        ports = () if service is None else service_of(service.document).services
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
            ports=tuple(port.destination_port or port.port for port in ports),
        )

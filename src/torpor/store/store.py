"""The store: all that torpord keeps on disk, and the only door to it.

Nothing above this package knows that it is SQLite, or a local file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import apsw

from torpor.store.bases import Bases
from torpor.store.blobs import BlobFiles
from torpor.store.database import Database
from torpor.store.disk import Disk
from torpor.store.errors import StoreError
from torpor.store.image_uses import ImageUses
from torpor.store.instances import Instances, write_row
from torpor.store.logs import Logs
from torpor.store.owners import Owners
from torpor.store.records import InstanceRow, PortClaim, ServiceRow
from torpor.store.services import Services, write_service
from torpor.store.snapshots import Snapshots


class Store:
    """An open store. Reads answer at once; changes are awaited and then durable."""

    def __init__(
        self,
        data_dir: Path,
        *,
        lower: Path | None = None,
        vfs: str | None = None,
        disk: Disk | None = None,
        synchronous: Literal["FULL", "OFF"] = "FULL",
    ) -> None:
        self._files = BlobFiles(data_dir / "blobs", lower, disk)
        self._files.claim_lower()
        self._database = Database(data_dir / "torpor.db", vfs=vfs, synchronous=synchronous)
        self.owners = Owners(self._database)
        self.instances = Instances(self._database)
        self.services = Services(self._database)
        self.bases = Bases(self._database, self._files)
        self.snapshots = Snapshots(self._database, self._files, self.bases)
        self.logs = Logs(self._database)
        self.image_uses = ImageUses(self._database)

    def close(self) -> None:
        """Closes it, after what is under way is committed."""
        self._database.close()

    def size_bytes(self) -> dict[str, int]:
        """Of the database with its log, and of large snapshots in each tier."""
        return {"database": self._database.size_bytes(), **self.snapshots.blob_bytes()}

    async def replace_instance(
        self,
        former: InstanceRow,
        new: InstanceRow,
        service: ServiceRow,
        ports: int,
        claims: tuple[PortClaim, ...],
    ) -> tuple[InstanceRow, InstanceRow, ServiceRow]:
        """Writes two instances back, `former` first, and a service group; or nothing of that.

        Raises ConflictError, NameTakenError or InUseError.
        """

        def change(connection: apsw.Connection) -> tuple[InstanceRow, InstanceRow, ServiceRow]:
            first = write_row(connection, former)
            if isinstance(first, StoreError):
                raise first
            second = write_row(connection, new)
            if isinstance(second, StoreError):
                raise second
            return first, second, write_service(connection, service, ports, claims)

        return await self._database.write(change)

    async def remove_instances(self, rows: Sequence[InstanceRow]) -> list[StoreError | None]:
        """Removes instances and everything that was kept for them, large snapshots included."""
        found = [self.snapshots.find(row.id) for row in rows]
        kept = [one for one in found if one is not None]
        digests = [one.digest for one in kept if one.tier is not None]
        answers = await self.instances.remove(rows)
        templates = {one.template.id for one in kept if one.template is not None}
        for template_id in templates:
            digests += await self.bases.drop_unneeded(template_id)
        if digests:
            await self.snapshots.drop_unreferenced(digests)
        return answers

    def sweep_staging(self) -> None:
        """Removes files that an earlier process left half-written. Once, before any change."""
        self._files.sweep_staging()

    async def collect(self) -> None:
        """Removes blobs that an earlier process left without anything that refers to them.

        Everything else can go on meanwhile, however many there are.
        """
        await self.snapshots.collect()

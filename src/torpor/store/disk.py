"""The file operations that durability hangs on, in one place so that tests can watch them."""

import errno
import os
from pathlib import Path

from torpor.store.content import Content
from torpor.store.errors import DamagedError, NoSpaceError, StoreError


def failure(error: OSError) -> StoreError:
    """What is said of a file operation that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError("no space left on the server's disk: free some and try again")
    return StoreError(f"the server's disk failed: {error}")


class Disk:
    """Real files. Each method does what POSIX says of the system call of that name."""

    def write_new(self, path: Path, content: Content) -> None:
        """Creates `path` with `content`, and fsyncs the file (not its directory)."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            content.write_to(descriptor)
            os.fsync(descriptor)
        except (OSError, DamagedError) as error:
            os.unlink(path)  # noqa: PTH108 -- system calls only, here
            if isinstance(error, OSError):
                raise failure(error) from error
            raise
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Moves a file within its file system; durable after `sync_directory(target.parent)`."""
        os.rename(source, target)  # noqa: PTH104

    def make_directory(self, path: Path) -> None:
        """Creates a directory, durably, if it is not there."""
        try:
            os.mkdir(path, 0o700)  # noqa: PTH102
        except FileExistsError:
            return
        self.sync_directory(path.parent)

    def sync_directory(self, path: Path) -> None:
        """Makes names that were created, renamed or removed in a directory durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def unlink(self, path: Path) -> None:
        """Removes a file if it is there."""
        path.unlink(missing_ok=True)

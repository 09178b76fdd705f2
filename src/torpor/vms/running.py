"""VMs that `torpor vm run --name` and `torpor vm restore` started, by name."""

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from torpor.errors import TorporError
from torpor.sockets import bind_seqpacket

# No dataclasses in this module: `vm run` waits for its imports.


def owner_of_this_user() -> str:
    """Whose VMs are those that this user starts without a daemon."""
    return f"uid:{os.geteuid()}"


def owner_digest(owner: str) -> str:
    """An owner as VM processes know it."""
    return hashlib.sha256(owner.encode()).hexdigest()


def file_identity(path: Path) -> list[int]:
    """Differs when another file is there, or the file was changed."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def new_record(
    *,
    uuid: str,
    image: str | None,
    erofs: Path,
    command: str,
    memory: str,
    ports: list[str],
    interactive: bool,
    tty: bool,
    generation: int = 0,
    template: str | None = None,
) -> dict[str, Any]:
    """What is to be known of a VM that this process will be the broker of."""
    return {
        "pid": os.getpid(),
        "uuid": uuid,
        "generation": generation,
        "owner": owner_of_this_user(),
        "image": image,
        "erofs": str(erofs.absolute()),
        "erofs_identity": file_identity(erofs),
        "template": template,
        "command": command,
        "memory": memory,
        "ports": ports,
        "interactive": interactive,
        "tty": tty,
        "started": time.time(),
    }


def managed_option(
    data_dir: Path, name: str, record: dict[str, Any], saved: dict[str, Any] | None = None
) -> list[str]:
    """Enter a VM among those that run; the options by which torpor-vmm takes commands for it.

    `saved` is the state that it begins with. Raises TorporError where the name is taken.
    """
    _, control = RunningVMs(data_dir).enter(name, record)
    managed = {
        "control_fd": control,
        "owner": owner_digest(record["owner"]),
        # What was not stored is not known by a digest yet.
        "image": (record["image"] or "").removeprefix("sha256:") or "0" * 64,
        "uuid": record["uuid"],
        "generation": record["generation"],
        "saved": saved,
    }
    return ["--managed", json.dumps(managed)]


class RunningVM:
    """What is known of a VM that runs."""

    __slots__ = ("about", "directory", "name")

    def __init__(self, directory: Path, name: str, about: dict[str, Any]) -> None:
        self.directory = directory
        self.name = name
        self.about = about
        """As `new_record` makes it."""

    @property
    def socket(self) -> Path:
        """Where its VM process takes commands."""
        return self.directory / f"{self.name}.sock"

    def write(self) -> None:
        """Make the record what `about` says."""
        path = self.directory / f"{self.name}.json"
        temporary = self.directory / f".{self.name}.{secrets.token_hex(4)}"
        temporary.write_text(json.dumps(self.about))
        temporary.replace(path)


class RunningVMs:
    """All of a data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.directory = data_dir / "run" / "named"

    def enter(self, name: str, about: dict[str, Any]) -> tuple[int, int]:
        """Take a name; returns descriptors of its lock and of a bound socket, both inheritable.

        The name is taken as long as any copy of the first is open. Raises TorporError where
        another VM has it.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._path(name, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise TorporError(
                f"--name {name}: a VM of this name runs: take another name, or end that one "
                "(`torpor vm list` shows its process)"
            ) from None
        self._path(name, "sock").unlink(missing_ok=True)
        control = bind_seqpacket(self._path(name, "sock")).detach()
        RunningVM(self.directory, name, about).write()
        os.set_inheritable(lock, True)
        os.set_inheritable(control, True)
        return lock, control

    def find(self, name: str) -> RunningVM:
        """The VM of a name. Raises TorporError if none runs."""
        for vm in self:
            if vm.name == name:
                return vm
        raise TorporError(f"no VM named {name!r} runs: `torpor vm list` shows those that do")

    def __iter__(self) -> Iterator[RunningVM]:
        """VMs that run, by name. What is left of others is removed."""
        for path in sorted(self.directory.glob("*.lock")):
            name = path.stem
            if self._is_left_over(name):
                continue
            with suppress(FileNotFoundError, ValueError):  # of one that is just being started
                about = json.loads(self._path(name, "json").read_bytes())
                yield RunningVM(self.directory, name, about)

    def _is_left_over(self, name: str) -> bool:
        lock = os.open(self._path(name, "lock"), os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            # The lock file itself stays: whoever has it open must find it by its name.
            self._path(name, "json").unlink(missing_ok=True)
            self._path(name, "sock").unlink(missing_ok=True)
            return True
        finally:
            os.close(lock)

    def _path(self, name: str, suffix: str) -> Path:
        return self.directory / f"{name}.{suffix}"

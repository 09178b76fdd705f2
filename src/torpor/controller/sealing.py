"""A saved state is run only for the instance, generation and base that it was committed for."""

import hmac
import os
import secrets
from pathlib import Path

from torpor.store import DamagedError

KEY_BYTES = 32


class Seal:
    """Message authentication codes under `snapshot.key`, which no VM process ever sees."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of(cls, data_dir: Path) -> "Seal":
        """The key of a data directory, made on first use. Raises DamagedError if it is short."""
        path = data_dir / "snapshot.key"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            key = path.read_bytes()
            if len(key) != KEY_BYTES:
                raise DamagedError(
                    f"{path}: not {KEY_BYTES} bytes: restore it from a backup"
                ) from None
            return cls(key)
        try:
            key = secrets.token_bytes(KEY_BYTES)
            os.write(descriptor, key)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return cls(key)

    def derive(self, purpose: bytes) -> bytes:
        """A secret of 32 bytes that is always the same for one purpose."""
        return hmac.digest(self._key, b"derived\n" + purpose, "sha256")

    def make(self, owner: str, instance: str, generation: int, base: str, digest: bytes) -> bytes:
        """The code for a state; `digest` is the SHA-256 of its content."""
        bound = f"{owner}\n{instance}\n{generation}\n{base}\n".encode() + digest
        return hmac.digest(self._key, bound, "sha256")

    def check(
        self, mac: bytes, owner: str, instance: str, generation: int, base: str, digest: bytes
    ) -> None:
        """Raises DamagedError unless `mac` is the code of just this."""
        if not hmac.compare_digest(mac, self.make(owner, instance, generation, base, digest)):
            raise DamagedError(
                f"the saved state of instance {instance}, generation {generation}, was not sealed "
                "for it: it will not be run; restore a backup"
            )

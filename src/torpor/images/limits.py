"""How large an image may be. Every reader of untrusted input counts against these."""

from dataclasses import dataclass

from torpor.images.errors import LimitExceededError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one image; `[images]` of the configuration file changes the first two."""

    max_bytes: int = 16 << 30
    """Of a layer, or of all layers together, after decompression."""
    max_inodes: int = 1_000_000
    """Entries of all layers together: files, directories, links."""
    max_devices: int = 1_024
    """Device nodes; a /dev has some twenty."""
    max_layers: int = 256
    max_path_bytes: int = 3_072
    max_name_bytes: int = 255
    max_header_bytes: int = 1 << 20
    """Of one entry's extended headers: long names and extended attributes."""


class Budget:
    """What is left of the limits while one image is read."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._bytes = 0
        self._entries = 0
        self._devices = 0

    def take_bytes(self, count: int, origin: str) -> None:
        """Counts decompressed bytes."""
        self._bytes += count
        if self._bytes > self.limits.max_bytes:
            raise LimitExceededError(
                f"{origin}: more than {self.limits.max_bytes:,} bytes after decompression; "
                "set max_bytes in [images] of config.toml if that is meant"
            )

    def take_entry(self, origin: str, *, device: bool) -> None:
        """Counts an entry of an archive."""
        self._entries += 1
        if self._entries > self.limits.max_inodes:
            raise LimitExceededError(
                f"{origin}: more than {self.limits.max_inodes:,} entries; "
                "set max_inodes in [images] of config.toml if that is meant"
            )
        self._devices += device
        if self._devices > self.limits.max_devices:
            raise LimitExceededError(
                f"{origin}: more than {self.limits.max_devices:,} device nodes"
            )

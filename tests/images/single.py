"""An image for tests in which no program is looked at, only its name and configuration."""

from pathlib import Path

from torpor.images.config import ImageConfig
from torpor.images.names import parse_reference
from torpor.images.store import ImageStore, NewImage


def add_single_file_image(
    data_dir: Path, name: str, cmd: tuple[str, ...] = ("/bin/web",), ports: tuple[str, ...] = ()
) -> str:
    """Adds an image whose root file system nobody can mount; its digest."""
    store = ImageStore(data_dir)
    with store.staging() as staging:
        erofs = staging / "root.erofs"
        erofs.write_bytes(name.encode() * 1024)
        config = ImageConfig(cmd=cmd, env=("PATH=/bin",), exposed_ports=ports)
        return store.add(NewImage(erofs, config, 1, 1), parse_reference(name))

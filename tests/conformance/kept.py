"""Outcomes that are kept, so that an interrupted `make conformance` goes on where it was.

They are in build/conformance, a file for each side and piece of work. Native outcomes are kept
until the root file system's packages or programs change, those in the guest until the binary
changes too.
"""

import hashlib
import json
import subprocess
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from tests.harness import REPOSITORY, TORPOR
from tests.rootfs.build import recipe_digest

FOLDER = REPOSITORY / "build" / "conformance"


class Side(Enum):
    """Where something runs: on this machine's kernel, or in a microVM in one of two ways."""

    NATIVE = "native"
    GUEST = "guest"
    TRAPPED = "no-rewrite"

    @property
    def options(self) -> tuple[str, ...]:
        """What `torpor vm run` is given for it."""
        return ("--no-rewrite",) if self is Side.TRAPPED else ()


@cache
def build() -> str:
    """The digest of the binary that runs the guests."""
    return hashlib.sha256((TORPOR.parent / "torpor-vmm").read_bytes()).hexdigest()


@cache
def commit() -> str:
    """What was checked out when this build was run first."""
    kept = Kept(Side.GUEST, "programs", "commit")
    known = kept.load()
    if known is None:
        words = ["git", "rev-parse", "--short=12", "HEAD"]
        found = subprocess.run(words, cwd=REPOSITORY, check=True, capture_output=True, text=True)
        known = found.stdout.strip()
        kept.store(known)
    return str(known)


def identity(side: Side, root: str) -> str:
    """Changes when what programs of `root` do on `side` may."""
    return recipe_digest(root) + ("" if side is Side.NATIVE else build())


class Kept:
    """What is known of one piece of work on one side."""

    def __init__(self, side: Side, root: str, name: str) -> None:
        self._path = FOLDER / side.value / f"{name}.json"
        self._identity = identity(side, root)

    @property
    def log(self) -> Path:
        """Where what was printed beside can be put."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._path.with_suffix(".log")

    def load(self) -> Any:
        """What was stored last; None if that is nothing, or no longer true."""
        if not self._path.exists():
            return None
        stored = json.loads(self._path.read_text())
        return stored["value"] if stored["identity"] == self._identity else None

    def store(self, value: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"identity": self._identity, "value": value}, indent=1)
        new = self._path.with_suffix(".new")
        new.write_text(text)
        new.rename(self._path)

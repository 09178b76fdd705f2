"""The project's own programs: end-to-end tests, which compare what they print with a native run."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass

from tests.conformance.kept import FOLDER, Kept, Side
from tests.harness import REPOSITORY

FILES = tuple(
    f"tests/e2e/test_{name}.py"
    for name in (
        "programs", "applications", "events", "processes", "sysv_ipc", "network", "network_kernel",
        "rewrite", "vdso", "bad_input", "hostile", "servers",
    )
)  # fmt: skip
ROOT = "programs"


@dataclass(frozen=True, slots=True)
class Counts:
    """Tests that passed, and those that did not."""

    passed: int
    failed: list[str]


def known() -> Counts | None:
    stored = Kept(Side.GUEST, ROOT, "suites").load()
    return None if stored is None else Counts(**stored)


def run() -> Counts:
    """Runs them, or tells what is kept."""
    found = known()
    if found is not None:
        return found
    FOLDER.mkdir(parents=True, exist_ok=True)
    report = FOLDER / "suites.xml"
    words = ["--quiet", f"--junit-xml={report}", *FILES]
    subprocess.run([sys.executable, "-m", "pytest", *words], cwd=REPOSITORY, check=False)
    cases = list(ET.parse(report).getroot().iter("testcase"))  # noqa: S314 -- our own file
    bad = [
        f"{case.attrib['classname'].removeprefix('tests.')}: {case.attrib['name']}"
        for case in cases
        if any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
    ]
    counts = Counts(len(cases) - len(bad), bad)
    Kept(Side.GUEST, ROOT, "suites").store(asdict(counts))
    return counts

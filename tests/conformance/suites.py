"""The project's own programs: end-to-end tests, which compare what they print with a native run.

They are kept with the build that ran them last: `python -m tests.conformance.suites` runs nothing
else, and prints their row of the page.
"""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass

from tests.conformance.kept import FOLDER, build, commit
from tests.harness import REPOSITORY

FILES = tuple(
    f"tests/e2e/test_{name}.py"
    for name in (
        "programs", "applications", "events", "inspection", "processes", "sysv_ipc", "network",
        "network_kernel", "ptrace", "rewrite", "vdso", "bad_input", "hostile", "servers",
    )
)  # fmt: skip
KEPT = FOLDER / "suites.json"


@dataclass(frozen=True, slots=True)
class Counts:
    """Tests that passed, and those that did not."""

    passed: int
    failed: list[str]
    build: str
    commit: str

    def text(self) -> str:
        """The figures, and the build unless it is the one that is installed now."""
        figures = f"{self.passed} of {self.passed + len(self.failed)}"
        if self.build == build():
            return figures
        return f"{figures} (build {self.build[:12]}, at commit {self.commit})"


def known() -> Counts | None:
    return Counts(**json.loads(KEPT.read_text())) if KEPT.exists() else None


def run() -> Counts:
    """Runs them, or tells what is kept."""
    found = known()
    if found is not None and found.build == build():
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
    counts = Counts(len(cases) - len(bad), bad, build(), commit())
    KEPT.write_text(json.dumps(asdict(counts), indent=1))
    return counts


if __name__ == "__main__":
    ran = run()
    print(ran.text(), f"(build {ran.build[:12]}, at commit {ran.commit})", *ran.failed, sep="\n")

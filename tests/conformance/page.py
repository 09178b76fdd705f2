"""`make conformance`: every test there is, also what is pending, told in docs/conformance.md."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.harness import REPOSITORY

REPORT = REPOSITORY / "build" / "conformance.xml"
PAGE = REPOSITORY / "docs" / "conformance.md"
SUITES = ("tests/e2e", "tests/stock_kvm")
HEADER = """# Conformance

Written by `make conformance`. Programs run unchanged in a microVM; what they print and how they end
is compared with the same program on the machine's own Linux.

| suite | test | result |
|---|---|---|
"""


def outcome(case: ET.Element) -> str:
    for kind, word in (("failure", "FAILED"), ("error", "FAILED"), ("skipped", "skipped")):
        if case.find(kind) is not None:
            return word
    return "passed"


def main() -> int:
    words = ["--quiet", "--run-pending", f"--junit-xml={REPORT}", *SUITES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=REPOSITORY, check=False,
    )  # fmt: skip
    rows = []
    counts: dict[str, int] = {}
    for case in ET.parse(REPORT).getroot().iter("testcase"):  # noqa: S314 -- our own file
        result = outcome(case)
        counts[result] = counts.get(result, 0) + 1
        suite = case.attrib["classname"].removeprefix("tests.")
        name = case.attrib["name"].replace("|", "\\|").replace("\n", " ")
        rows.append(f"| {suite} | `{name}` | {result} |")
    summary = ", ".join(f"{number} {result}" for result, number in sorted(counts.items()))
    Path(PAGE).write_text(f"{HEADER}{chr(10).join(rows)}\n\n{summary}\n")
    print(f"docs/conformance.md: {summary}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

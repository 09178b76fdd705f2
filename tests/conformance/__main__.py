"""`make conformance`: other people's tests in a microVM and natively; docs/conformance.md."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from tests.conformance import cases, cpython, fuzz, stress_ng
from tests.harness import REPOSITORY

REPORT = REPOSITORY / "build" / "conformance.xml"
PAGE = REPOSITORY / "docs" / "conformance.md"
SUITES = ("tests/e2e", "tests/stock_kvm")
PROGRAMS = 1000
BAR = 0.97
HEADER = """# Conformance

Written by `make conformance`. Everything here runs unchanged in a microVM and on the machine's own
Linux, and what it does there is what it should do here.
"""


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def cpython_lines() -> Iterator[str]:
    yield "\n## CPython's regression tests\n"
    yield "Cases that pass natively, and how many of them pass in the guest.\n"
    yield "| module | natively | in the guest |\n|---|---|---|"
    modules = []
    for name in cpython.MODULES:
        modules.append(cases.compare(name))
        yield f"| {name} | {modules[-1].native} | {modules[-1].guest} |"
    yield from cpython_summary(modules)


def cpython_summary(modules: list[cases.Module]) -> Iterator[str]:
    native, guest = sum(m.native for m in modules), sum(m.guest for m in modules)
    share = guest / max(1, native)
    verdict = "met" if share >= BAR else "MISSED"
    yield f"\n{guest} of {native}: {share:.2%} (bar {BAR:.0%}: {verdict})\n"
    yield "| case that passes natively only | there | reason |\n|---|---|---|"
    for module in modules:
        for case, outcome in module.failed.items():
            name = case.removeprefix("test.")
            yield f"| `{cell(name)}` | {outcome.word} | {cell(outcome.reason)} |"


def stress_lines() -> Iterator[str]:
    yield f"\n## stress-ng\n\nEach stressor for {stress_ng.SECONDS} s with `--verify`.\n"
    yield "| stressor | natively | in the guest | reason |\n|---|---|---|---|"
    for stressor in stress_ng.STRESSORS:
        native, guest = stress_ng.compare(stressor)
        reason = cell(guest.reason) if guest.word != native.word else ""
        yield f"| {stressor} | {native.word} | {guest.word} | {reason} |"


def fuzz_lines() -> Iterator[str]:
    yield "\n## Random programs of system calls\n"
    found = [item for batch in fuzz.batches(1, PROGRAMS) for item in fuzz.compare(*batch)]
    yield f"{PROGRAMS - len(found)} of {PROGRAMS} give the same results (seeds 1 to {PROGRAMS}).\n"
    for difference in found:
        yield f"```\n{difference}\n```"


def suite_lines() -> Iterator[str]:
    yield "\n## The project's own programs\n\n| suite | test | result |\n|---|---|---|"
    words = ["--quiet", "--run-pending", f"--junit-xml={REPORT}", *SUITES]
    subprocess.run([sys.executable, "-m", "pytest", *words], cwd=REPOSITORY, check=False)
    for case in ET.parse(REPORT).getroot().iter("testcase"):  # noqa: S314 -- our own file
        result = "passed"
        for kind, word in (("failure", "FAILED"), ("error", "FAILED"), ("skipped", "skipped")):
            if case.find(kind) is not None:
                result = word
        suite = case.attrib["classname"].removeprefix("tests.")
        yield f"| {suite} | `{cell(case.attrib['name'])}` | {result} |"


def main() -> int:
    lines = [HEADER]
    for part in (fuzz_lines, stress_lines, suite_lines, cpython_lines):
        for line in part():
            print(line, flush=True)
            lines.append(line)
            # What is known already, should it be interrupted.
            PAGE.write_text("\n".join(lines) + "\n")
    text = PAGE.read_text()
    return 1 if "MISSED" in text or "FAILED" in text or "| failed |" in text else 0


if __name__ == "__main__":
    sys.exit(main())

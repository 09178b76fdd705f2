"""Runs every check of the project in stages, with the wall time of each.

`run_tests.py` runs all stages, also behind a failed one, and exits 1 if any failed.
`run_tests.py --only lint|rust|python` runs one group. The last line counts everything:
`N passed, N failed, N skipped`, where a stage without tests of its own counts as one.
"""

import argparse
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
BUILD = ROOT / "build"
CARGO_TEST_RESULT = re.compile(
    r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE
)

ALONE = ["--jobs", "1"]
"""Builds beside other stages, which need a processor of their own."""
CONTROL_PLANE = [f"tests/{name}" for name in ("api", "controller", "images", "store", "unit")]
"""Tests that run hardly any VM."""


@dataclass(slots=True)
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0


@dataclass(slots=True)
class Stage:
    name: str
    group: str
    command: list[str]
    beside: bool = False
    """It runs beside the stages after it that are not, behind the others that are; its output is
    printed when they are over. It keeps one processor at most, and tests of VMs seldom both."""
    report: Path | None = None
    """Where pytest writes what it ran, in the format of JUnit."""
    wall_s: float = 0.0
    exit_status: int = 0
    counts: Counts = field(default_factory=Counts)


def stages() -> list[Stage]:
    python = str(BIN / "python")
    found = [
        Stage("ruff check", "lint", [str(BIN / "ruff"), "check", "--quiet"]),
        Stage("ruff format", "lint", [str(BIN / "ruff"), "format", "--check", "--quiet"]),
        Stage("mypy", "lint", [str(BIN / "mypy")]),
        Stage("cargo fmt", "lint", ["cargo", "fmt", "--all", "--check"]),
        Stage(
            "cargo clippy",
            "lint",
            [
                "cargo",
                "clippy",
                "--locked",
                "--quiet",
                *ALONE,
                "--workspace",
                "--all-targets",
                "--",
                "-Dwarnings",
            ],
            beside=True,
        ),
        Stage(
            "cargo clippy (guest)",
            "lint",
            # The guest kernel as it runs in the guest, without the host's standard library.
            [
                "cargo",
                "clippy",
                "--locked",
                "--quiet",
                *ALONE,
                "-p",
                "torpor-kernel",
                "--no-default-features",
                "--",
                "-Dwarnings",
            ],
            beside=True,
        ),
        Stage(
            "cargo test",
            "rust",
            ["cargo", "test", "--locked", "--quiet", *ALONE, "--workspace"],
            beside=True,
        ),
        Stage("root file systems", "python", [python, "-m", "tests.rootfs"]),
        pytest("pytest (stock KVM)", "tests/stock_kvm", beside=True),
        pytest("pytest (control plane)", *CONTROL_PLANE, beside=True),
        pytest("pytest", *(f"--ignore={one}" for one in ("tests/stock_kvm", *CONTROL_PLANE))),
    ]
    image = ROOT / "crates" / "kernel-image" / "Cargo.toml"
    if image.exists():
        manifest = ["--manifest-path", str(image)]
        found[4:4] = [Stage("cargo fmt (image)", "lint", ["cargo", "fmt", *manifest, "--check"])]
    return found


def pytest(name: str, *arguments: str, beside: bool = False) -> Stage:
    """A stage that runs pytest with `arguments`."""
    report = BUILD / f"{re.sub('[^a-z]+', '-', name.lower()).strip('-')}.xml"
    command = [str(BIN / "python"), "-m", "pytest", "--quiet", f"--junit-xml={report}"]
    return Stage(name, "python", [*command, "--durations=10", *arguments], beside, report)


def run(stage: Stage, show: Callable[[str], None]) -> None:
    """Run `stage`, hand its output to `show` line by line, and fill in its results."""
    show(f"== {stage.name}: {' '.join(stage.command)}\n".replace(f"{ROOT}/", ""))
    began = time.monotonic()
    with subprocess.Popen(
        stage.command, cwd=ROOT, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        output = []
        for line in process.stdout or ():
            show(line)
            output.append(line)
    stage.exit_status = process.returncode
    stage.wall_s = time.monotonic() - began
    stage.counts = counts(stage, "".join(output))


def counts(stage: Stage, output: str) -> Counts:
    """How many tests a finished stage ran; one for a stage without tests of its own."""
    found = Counts()
    if stage.name == "cargo test":
        for passed, failed, ignored in CARGO_TEST_RESULT.findall(output):
            found.passed += int(passed)
            found.failed += int(failed)
            found.skipped += int(ignored)
    elif stage.report is not None and stage.report.exists():
        for suite in ET.parse(stage.report).getroot().iter("testsuite"):  # noqa: S314 -- our own
            total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
            failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
            found.passed += total - failed - skipped
            found.failed += failed
            found.skipped += skipped
    else:
        found.passed = 1 if stage.exit_status == 0 else 0
    if stage.exit_status != 0 and found.failed == 0:
        found.failed = 1  # it did not even get as far as its tests
    return found


def show(text: str) -> None:
    print(text, end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=["lint", "rust", "python"], help="run one group of stages"
    )
    only = parser.parse_args().only
    BUILD.mkdir(exist_ok=True)
    os.environ.setdefault("CARGO_TERM_COLOR", "never")

    ran = [stage for stage in stages() if only in (None, stage.group)]
    for stage in ran:
        if stage.report is not None:
            stage.report.unlink(missing_ok=True)
    kept: list[str] = []
    running: list[Future[None]] = []
    with ThreadPoolExecutor(max_workers=1) as beside:
        for stage in ran:
            if stage.beside:
                running.append(beside.submit(run, stage, kept.append))
            else:
                run(stage, show)
    for future in running:
        future.result()
    show("".join(kept))

    print("\nstage                    wall time  result")
    for stage in ran:
        result = "ok" if stage.exit_status == 0 else f"FAILED (exit status {stage.exit_status})"
        print(f"{stage.name:24} {stage.wall_s:7.1f} s  {result}")
    total = Counts(
        sum(stage.counts.passed for stage in ran),
        sum(stage.counts.failed for stage in ran),
        sum(stage.counts.skipped for stage in ran),
    )
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    return 1 if any(stage.exit_status for stage in ran) else 0


if __name__ == "__main__":
    sys.exit(main())

"""System call sites that are rewritten to jumps: nobody can tell, and most calls come that way."""

import re
from pathlib import Path

import pytest

from tests.e2e.test_programs import compare
from tests.harness import vm_run

pytestmark = pytest.mark.kvm

OFF = ("--no-rewrite",)
NATIVE_COMPARISONS = (
    "registers", "faults", "memory", "event_epoll", "event_pipes", "process_futex",
    "process_signals", "process_wait",
)  # fmt: skip


@pytest.mark.parametrize("options", [(), OFF], ids=["on", "off"])
def test_rewritten_sites(options: tuple[str, ...]) -> None:
    """Signals and single steps in the middle, debuggers' reads, text that changes and moves."""
    assert compare("programs", "rewritten", options=options).status == 0


@pytest.mark.parametrize("name", NATIVE_COMPARISONS)
def test_trapped_calls(name: str) -> None:
    """What other tests run with rewriting on."""
    compare("programs", name, options=OFF)


def calls(root: str, *argv: str, options: tuple[str, ...], trace: Path) -> tuple[int, int, int]:
    """How many system calls of a run were fast and trapped, and how many lines the trace has."""
    result = vm_run(root, *argv, options=(f"--trace={trace}", *options), timeout_s=240)
    assert result.status == 0, str(result)
    text = trace.read_text()
    counts = re.search(r"^System calls: (\d+) fast, (\d+) trapped; \d+ sites", text, re.MULTILINE)
    assert counts
    return (
        int(counts[1]),
        int(counts[2]),
        len(re.findall(r"^ +\d+ +\d+\.\d+ \w+\(", text, re.MULTILINE)),
    )


FILES = "import os\nfor n in range(1000): open('/tmp/x', 'w').write('x'); os.stat('/tmp/x')"


@pytest.mark.parametrize(
    ("root", "argv"),
    [
        ("python", ("python3", "-c", FILES)),
        ("busybox", ("sh", "-c", "i=0; while [ $i -lt 3000 ]; do [ -e /x$i ]; i=$((i+1)); done")),
        ("perl", ("perl", "-e", "for (1..3000) { open(F, '</etc/passwd'); <F>; close(F) }")),
    ],
    ids=["python", "busybox", "perl"],
)
def test_most_calls_are_fast(root: str, argv: tuple[str, ...], tmp_path: Path) -> None:
    """Nine in ten of a program that calls often; and a trace shows all of them."""
    fast, trapped, lines = calls(root, *argv, options=(), trace=tmp_path / "trace")
    assert fast > 9 * trapped, (fast, trapped)
    assert lines > fast


def test_off(tmp_path: Path) -> None:
    fast, trapped, _ = calls("python", "python3", "-c", FILES, options=OFF, trace=tmp_path / "t")
    assert fast == 0
    assert trapped > 3000

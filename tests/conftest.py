"""Rules for all tests: what needs KVM, and what is not expected to work yet."""

import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.kvm import kvm_problem

PENDING = Path(__file__).parent / "e2e" / "pending.txt"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--run-pending", action="store_true", help="also run what tests/e2e/pending.txt lists"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Ignored by nohup(1), and in a shell's background: native runs of programs would inherit that,
    # and guests do not.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "kvm: starts a microVM, and so needs a usable /dev/kvm")


def pending_tests() -> list[str]:
    """Node identifiers of tests that are known not to pass yet; a prefix stands for all below."""
    lines = (line.split("#")[0].strip() for line in PENDING.read_text().splitlines())
    return [line for line in lines if line]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    problem = kvm_problem()
    if problem is not None:
        skip = pytest.mark.skip(reason=problem)
        for item in items:
            if item.get_closest_marker("kvm"):
                item.add_marker(skip)
    if not config.getoption("--run-pending"):
        waiting = tuple(pending_tests())
        left_out = [item for item in items if waiting and _matches(item.nodeid, waiting)]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]


def _matches(node: str, prefixes: Iterable[str]) -> bool:
    return any(
        node == prefix or node.startswith((f"{prefix}::", f"{prefix}[")) for prefix in prefixes
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    problem = kvm_problem()
    if problem is not None:
        terminalreporter.write_line(
            f"NO USABLE KVM: {problem}: all tests that start a microVM here are SKIPPED; "
            "the run on emulated stock KVM is the proof",
            red=True,
        )
    waiting = pending_tests()
    if waiting:
        terminalreporter.write_line(
            f"PENDING: {len(waiting)} entries of tests/e2e/pending.txt do not work yet and were "
            "not run (--run-pending runs them):",
            yellow=True,
        )
        for entry in waiting:
            terminalreporter.write_line(f"  {entry}")

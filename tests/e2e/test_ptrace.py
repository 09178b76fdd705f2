"""ptrace(2): what tracers see and change is as natively; strace and gdb do their work."""

import re

import pytest

from tests.e2e.test_programs import compare
from tests.harness import Result, run_native, vm_run

pytestmark = pytest.mark.kvm

OFF = ("--no-rewrite",)


@pytest.mark.parametrize("options", [(), OFF], ids=["rewritten", "trapped"])
@pytest.mark.parametrize("name", ["calls", "steps"])
def test_instructions_and_calls(name: str, options: tuple[str, ...]) -> None:
    assert compare("programs", f"trace_{name}", options=options).status == 0


@pytest.mark.parametrize("name", ["attach", "forks", "signals", "threads"])
def test_tracing(name: str) -> None:
    assert compare("programs", f"trace_{name}").status == 0


def both(*argv: str, options: tuple[str, ...] = ()) -> tuple[Result, Result]:
    native = run_native("debuggers", *argv, alone=True)
    guest = vm_run("debuggers", *argv, options=options)
    assert (guest.status, guest.stdout) == (native.status, native.stdout), f"{guest}\n{native}"
    return native, guest


def calls(result: Result) -> list[str]:
    """The names of the calls in an output of strace, in their order; each process by itself."""
    text = result.stderr.decode(errors="replace")
    by_process: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = re.match(r"(?:\[pid +(\d+)\] )?(?:(\w+)\(|(\+\+\+ exited with \d+))", line)
        if match:
            by_process.setdefault(match[1] or "", []).append(match[2] or match[3])
    return [name for names in by_process.values() for name in names]

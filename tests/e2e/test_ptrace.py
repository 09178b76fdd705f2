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


@pytest.mark.parametrize("name", ["attach", "ends", "forks", "signals", "threads"])
def test_tracing(name: str) -> None:
    assert compare("programs", f"trace_{name}").status == 0


SHORT_OF_MEMORY = """
import ctypes, mmap, os, signal
ptrace = ctypes.CDLL(None).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
TRACEME, CONT, SETOPTIONS, TRACEEXIT = 0, 7, 0x4200, 0x40
child = os.fork()
if child == 0:
    ptrace(TRACEME, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    memory = bytearray(150 << 20)
    os.kill(os.getpid(), signal.SIGUSR1)
os.waitpid(child, 0)
ptrace(SETOPTIONS, child, 0, TRACEEXIT)
ptrace(CONT, child, 0, 0)
print(os.WSTOPSIG(os.waitpid(child, 0)[1]))
wanted = memoryview(mmap.mmap(-1, 120 << 20))
at = 0
with open("/dev/zero", "rb", buffering=0) as zeros:
    while at < len(wanted):
        at += zeros.readinto(wanted[at : at + (1 << 20)])
print(at >> 20, os.waitpid(child, 0)[1])
"""


def test_a_tracer_does_not_hold_memory_up() -> None:
    """A tracee that ends so that its tracer has memory does not stop for it first."""
    result = vm_run("python", "python3", "-c", SHORT_OF_MEMORY, options=("--memory", "256M"))
    assert result.stdout == b"10\n120 9\n", str(result)


def same(*argv: str, numbers: bool = True, in_order: bool = True) -> None:
    """Both runs agree but for addresses and ids; without `numbers` in all other text."""
    native = run_native("debuggers", *argv, alone=True)
    guest = vm_run("debuggers", *argv)
    agreed = [shown(result, numbers=numbers, in_order=in_order) for result in (guest, native)]
    assert agreed[0] == agreed[1]


def shown(result: Result, *, numbers: bool, in_order: bool) -> tuple[int, list[str]]:
    """What must agree. Who runs first is not told by a machine with several processors."""
    text = (result.stdout + result.stderr).decode(errors="replace")
    text = re.sub(r"Thread 0x[0-9a-f]+ \(LWP \d+\)|process \d+", "somebody", text)
    if not numbers:
        text = re.sub(r" +", " ", re.sub(r"0x[0-9a-f]+|\d+", "N", text))
    lines = text.splitlines()
    return result.status, lines if in_order else sorted(lines)


@pytest.mark.parametrize("script", ["breakpoints", "threads", "forks", "crash"])
def test_gdb(script: str) -> None:
    """Breakpoints, backtraces, steps, watchpoints, called functions, threads, children, faults."""
    command = ("gdb", "-batch", "-nx", "-x", f"/srv/{script}.gdb", "debugged")
    same(*command, in_order=script != "forks")


def test_strace_of_a_pipeline() -> None:
    calls = "trace=execve,clone,exit_group,pipe2,dup2,write,openat"
    script = f"""
        strace -ff -o /tmp/calls -e {calls} -e signal=none sh -c 'echo abc | cat | wc -c'
        cat /tmp/calls.*
    """
    same("bash", "-c", script, numbers=False)


def test_strace_of_threads() -> None:
    """All calls of threads, whose sites are called often."""
    script = """
        strace -ff -qq -e trace=getppid,exit_group -o /tmp/calls python3 -S /srv/threads.py
        for thread in /tmp/calls.*; do
            cut -c 1-7 $thread | uniq -c
        done
    """
    same("bash", "-c", script, in_order=False)


def test_strace_of_a_running_program() -> None:
    """By its id: it goes on as before when strace is gone."""
    script = """
        python3 -S -c 'import time; [time.sleep(0.01) for n in range(100)]; print("slept")' &
        sleep 0.2
        timeout -s INT 0.3 strace -qq -e trace=clock_nanosleep -o /tmp/calls -p $!
        wait $!
        echo $? $(head -n 3 /tmp/calls | cut -d '(' -f 1 | sort -u)
    """
    same("bash", "-c", script, in_order=False)

"""Programs ask for the time without a system call."""

import re
from pathlib import Path

import pytest

from tests.harness import vm_run

pytestmark = pytest.mark.kvm

# Each clock through the C library, between two system calls that ask for the same.
CODE = """
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
class Time(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("fraction", ctypes.c_long)]
def by_system_call(clock):
    now = Time()
    assert libc.syscall(228, clock, ctypes.byref(now)) == 0
    return now.seconds * 10**9 + now.fraction
for clock in (0, 1, 4, 5, 6, 7, 11):
    for _ in range(100):
        before = by_system_call(clock)
        now = time.clock_gettime_ns(clock)
        after = by_system_call(clock)
        assert before <= now <= after, (clock, before, now, after)
for _ in range(100):
    before, now = by_system_call(0), Time()
    assert libc.gettimeofday(ctypes.byref(now), None) == 0
    micros = now.seconds * 10**6 + now.fraction
    assert before // 1000 <= micros <= by_system_call(0) // 1000
    assert before // 10**9 <= libc.time(None) <= by_system_call(0) // 10**9
    assert libc.sched_getcpu() == 0
print("agree")
"""


def test_clocks_do_not_trap(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    result = vm_run("python", "python3", "-c", CODE, options=(f"--trace={trace}",))
    assert (result.status, result.stdout) == (0, b"agree\n"), result
    calls = re.findall(r"^ +\d+ +[\d.]+ (\w+)\(", trace.read_text(), re.MULTILINE)
    assert calls.count("clock_gettime") == 7 * 100 * 2 + 100 * 3
    assert not {"gettimeofday", "time", "getcpu"} & set(calls)

"""Processes, groups, signals, futexes, credentials: what programs see is as natively."""

import time

import pytest

from tests.e2e.test_programs import compare
from tests.harness import Result, vm_run

pytestmark = pytest.mark.kvm

COMPARED = [
    "process_wait",
    "process_groups",
    "process_signals",
    "process_futex",
    "process_inherit",
    "process_ids",
    "process_tty",
]


@pytest.mark.parametrize("name", COMPARED)
def test_processes(name: str) -> None:
    assert compare("programs", name).status == 0


def sh(script: str) -> Result:
    return vm_run("busybox", "sh", "-c", script)


def test_init_stands_in_for_process_1() -> None:
    script = """
        echo $$ $PPID
        cat /proc/1/comm
        tr '\\0' ' ' </proc/1/cmdline
        cut -d ' ' -f 1-6 /proc/1/stat
        cut -d ' ' -f 1-2,4-6 /proc/$$/stat  # the shell may not be waiting yet
        for signal in 0 TERM KILL STOP SEGV; do kill -$signal 1 && echo $signal; done
        grep State /proc/1/status
    """
    assert sh(script).stdout.decode().splitlines() == [
        "2 1",
        "init",
        "1 (init) S 0 1 1",
        "2 (sh) 1 2 2",
        "0", "TERM", "KILL", "STOP", "SEGV",
        "State:\tS (sleeping)",
    ]  # fmt: skip


def test_init_adopts_orphans_and_reaps_them() -> None:
    script = """
        (sh -c 'while [ -e /tmp/hold ]; do sleep 0.01; done; grep PPid /proc/$$/status >/tmp/parent
                echo $$ >/tmp/pid' &)
        until [ -s /tmp/pid ]; do sleep 0.01; done
        cat /tmp/parent
        while [ -e /proc/$(cat /tmp/pid) ]; do sleep 0.01; done
        echo gone
    """
    assert sh(script).stdout == b"PPid:\t1\ngone\n"


def test_the_vm_ends_with_its_program() -> None:
    began = time.monotonic()
    assert sh("sleep 1000 & (trap '' TERM HUP; sleep 1000) & exit 4").status == 4
    assert time.monotonic() - began < 60


def test_calls_that_are_refused_to_root_too() -> None:
    """As in a container: no namespaces, only bind and tmpfs mounts, no io_uring."""
    code = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    result = libc.syscall(number, *args)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "ok"
buffer = ctypes.create_string_buffer(4096)
print("io_uring_setup", call(425, 8, buffer))
kinds = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]
print("unshare", {call(272, kind) for kind in [*kinds, 0x80]})
print("clone", {call(56, kind | 17, 0, 0, 0, 0) for kind in kinds})
for name in sorted(os.listdir("/proc/self/ns")):
    fd = os.open("/proc/self/ns/" + name, os.O_RDONLY)
    same = os.fstat(fd).st_ino == int(os.readlink(f"/proc/self/fd/{fd}").split("[")[1][:-1])
    print(name, same, call(308, fd, 0))
init = os.pidfd_open(1)
print("setns", call(308, 0, 0), call(308, init, 0x20000), call(308, init, 0))
os.makedirs("/tmp/a"); os.makedirs("/tmp/b")
print("proc", call(165, b"proc", b"/tmp/a", b"proc", 0, 0))
print("tmpfs", call(165, b"x", b"/tmp/a", b"tmpfs", 0, 0))
print("bind", call(165, b"/tmp/a", b"/tmp/b", 0, 4096, 0))
open("/tmp/a/file", "w").close()
print(os.listdir("/tmp/b"), call(166, b"/tmp/b", 0), call(166, b"/tmp/a", 0))
print(os.listdir("/tmp/a"))
"""
    result = vm_run("python", "python3", "-c", code)
    assert result.stdout.decode().splitlines() == [
        "io_uring_setup EPERM",
        "unshare {'EPERM'}",
        "clone {'EPERM'}",
        *[
            f"{name} True EPERM"
            for name in (
                *("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children"),
                *("time", "time_for_children", "user", "uts"),
            )
        ],
        "setns EINVAL EPERM EINVAL",
        "proc EPERM",
        "tmpfs ok",
        "bind ok",
        "['file'] ok ok",
        "[]",
    ], result


SHORT_OF_MEMORY = """
import mmap, os, signal, sys
held = os.pipe()
child = os.fork()
if child == 0:
    memory = bytearray(150 << 20)
    os.write(held[1], b"x")
    signal.pause()
os.read(held[0], 1)
wanted = memoryview(mmap.mmap(-1, 120 << 20))
at = 0
with open("/dev/zero", "rb", buffering=0) as zeros:
    while at < len(wanted):
        at += zeros.readinto(wanted[at : at + (1 << 20)])
print(at >> 20, os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


def test_calls_wait_for_memory() -> None:
    """A system call that needs a page goes on when another process has been ended for it."""
    result = vm_run("python", "python3", "-c", SHORT_OF_MEMORY, options=("--memory", "256M"))
    assert result.stdout == b"120 9\n", str(result)


def test_memory_of_files_is_told() -> None:
    """In /proc/meminfo, in KiB: a file of 8 MiB and shared memory come and go."""
    shown = "awk '/^(Cached|Shmem):/ { print int($2 / 1024) }' /proc/meminfo"
    result = sh(f"{shown}; head -c 8388608 /dev/zero > /tmp/file; {shown}; rm /tmp/file; {shown}")
    assert result.stdout.split() == [b"0", b"0", b"8", b"8", b"0", b"0"], str(result)


def test_logins_are_noted() -> None:
    """By pam_loginuid(8), without which nobody logs in by ssh: for a process and its children."""
    script = """
        cat /proc/self/loginuid /proc/self/sessionid; echo
        echo 1000 >/proc/$$/loginuid
        cat /proc/self/loginuid; echo; cat /proc/self/sessionid; echo
        (echo 5 >/proc/$$/loginuid) 2>/dev/null || echo not of another
        echo 4294967295 >/proc/$$/loginuid
        cat /proc/self/loginuid; echo
    """
    assert sh(script).stdout.decode().splitlines() == [
        "42949672954294967295",
        "1000",
        "1",
        "not of another",
        "4294967295",
    ]

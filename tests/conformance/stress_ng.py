"""stress-ng's stressors with their own verification, in a microVM and natively beside.

`python -m tests.conformance.stress_ng [--no-rewrite] [STRESSOR...]` runs them and prints what
failed. Outcomes are kept: see tests/conformance/kept.py.
"""

import re
import sys
from dataclasses import asdict, dataclass

from tests.conformance.kept import Kept, Side
from tests.harness import Result, run_native, vm_run

ROOT = "stress"
MEMORY = "3G"
"""`iomix` alone allocates a file of 1 GiB, and half of the memory is for files."""
SECONDS = 2
TIMEOUT_S = 120.0

STRESSORS = (
    # memory
    "bigheap", "brk", "dev-shm", "env", "madvise", "malloc", "mincore", "mlock", "mmap",
    "mmapaddr", "mmapfixed", "mmapfork", "mmapmany", "mprotect", "mremap", "msync", "munmap",
    "pagemove", "pageswap", "remap", "shm", "stack", "stackmmap", "tmpfs", "vm", "vm-addr",
    "vm-rw", "vm-segv", "vm-splice", "zero", "null", "memfd", "seal",
    # processes and threads
    "clone", "context", "daemon", "exec", "exit-group", "fork", "forkheavy", "futex", "getrandom",
    "kill", "loadavg", "mutex", "nice", "pidfd", "prctl", "pthread", "ptrace", "resched", "rlimit",
    "sem", "session", "set", "spawn", "switch", "vfork", "wait", "yield", "zombie",
    # signals
    "alarm", "bad-altstack", "fault", "sigabrt", "sigchld", "sigfd", "sigfpe", "sigio", "signal",
    "signest", "sigpending", "sigpipe", "sigq", "sigrt", "sigsegv", "sigsuspend", "sigtrap",
    # pipes and events
    "epoll", "eventfd", "fifo", "inotify", "pipe", "pipeherd", "poll", "ring-pipe", "splice", "tee",
    # sockets
    "sock", "sockabuse", "sockfd", "sockmany", "sockpair", "udp", "udp-flood",
    # files
    "access", "chdir", "chmod", "chown", "close", "copy-file", "dentry", "dir", "dirdeep",
    "dirmany", "dup", "fallocate", "fcntl", "filename", "flock", "fpunch", "fsize", "fstat",
    "getdent", "hdd", "io", "iomix", "link", "locka", "lockf", "lockofd", "mknod", "open",
    "procfs", "readahead", "rename", "revio", "seek", "sendfile", "symlink", "sync-file", "touch",
    "urandom", "utime", "xattr",
    # time
    "clock", "hrtimers", "itimer", "nanosleep", "sleep", "timer", "timerfd", "vdso",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a stressor: `passed`, `skipped` or `failed`."""

    word: str
    reason: str = ""


def outcome(result: Result) -> Outcome:
    text = (result.stdout + result.stderr).decode(errors="replace")
    lines = [re.sub(r"^stress-ng: (\w+): +\[\d+\] *", r"\1 ", line) for line in text.splitlines()]
    if result.status == 0 and any("skip" in line for line in lines):
        return Outcome("skipped", next(line for line in lines if "skip" in line)[:200])
    if result.status == 0:
        return Outcome("passed")
    if result.status == 4:  # EXIT_NOT_IMPLEMENTED
        return Outcome("skipped", lines[-1][:200] if lines else "")
    told = [line for line in lines if line.startswith(("fail", "error")) or "panic" in line]
    return Outcome("failed", f"exit status {result.status}: {(told or lines or [''])[0]}"[:200])


def command(stressor: str) -> list[str]:
    options = ["--verify", "--timeout", f"{SECONDS}s", "--temp-path", "/tmp"]
    return ["stress-ng", *options, f"--{stressor}", "1"]


def run(stressor: str, side: Side) -> Outcome:
    """The outcome of a stressor on one side, the one that is kept if there is one."""
    kept = Kept(side, ROOT, f"stress-{stressor}")
    stored = kept.load()
    if stored is not None:
        return Outcome(**stored)
    words, options = command(stressor), ("--memory", MEMORY, *side.options)
    try:
        if side is Side.NATIVE:
            found = outcome(run_native(ROOT, *words, timeout_s=TIMEOUT_S, alone=True))
        else:
            found = outcome(vm_run(ROOT, *words, options=options, timeout_s=TIMEOUT_S))
    except TimeoutError:
        found = Outcome("failed", f"took longer than {TIMEOUT_S:.0f} s")
    kept.store(asdict(found))
    return found


def known(stressor: str, side: Side) -> Outcome | None:
    """What is kept of a stressor."""
    stored = Kept(side, ROOT, f"stress-{stressor}").load()
    return None if stored is None else Outcome(**stored)


def main() -> int:
    words = sys.argv[1:]
    side = Side.TRAPPED if "--no-rewrite" in words else Side.GUEST
    stressors = [word for word in words if word != "--no-rewrite"] or STRESSORS
    bad = 0
    for stressor in stressors:
        native, guest = run(stressor, Side.NATIVE), run(stressor, side)
        if native.word == "passed" != guest.word:
            bad += 1
            print(f"{stressor}: {guest.word} ({guest.reason}), natively {native.word}", flush=True)
    print(f"{bad} of {len(stressors)} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

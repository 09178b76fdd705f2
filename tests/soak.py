"""`make soak`: minutes of microVMs, two at a time, some of them killed in the middle.

Every run that is left alone must print and end exactly as it does natively; a VM process that is
killed must take nothing with it and leave nothing behind. SOAK_MINUTES sets the time (10).

Then servers under load, two at a time, SOAK_SERVER_MINUTES each (3): every answer must be right,
and once a third of the time is over the VM process must not grow any more.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.harness import TORPOR, Result, run_native
from tests.kvm import kvm_problem
from tests.rootfs.build import root_image
from tests.servers import SERVERS, Server, anonymous_kib, put_under_load, running

PROGRAMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("busybox", "256M", ("sh", "/srv/builtins.sh")),
    ("python", "256M", ("python3", "/srv/threads.py")),
    ("python", "256M", ("python3", "/srv/aio.py")),
    ("python", "256M", ("python3", "/srv/files.py")),
    ("programs", "256M", ("goroutines",)),
    ("programs", "256M", ("registers",)),
    ("programs", "256M", ("memory",)),
    ("bun", "1G", ("bun", "/srv/all.ts")),
    ("node", "1G", ("node", "/srv/all.js")),
)
KILLED_SHARE = 0.15
RUN_LIMIT_S = 120.0
GROWTH_KIB = 24 << 10
"""More than programs' own caches and garbage collectors swing by from one third to the next."""


class Soak:
    """Counts and failures of all workers; `lock` guards them."""

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self.lock = threading.Lock()
        self.runs = 0
        self.killed = 0
        self.failures: list[str] = []
        self.expected = {program: run_native(program[0], *program[2]) for program in PROGRAMS}

    def work(self, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < self.until_s:
            program = chance.choice(PROGRAMS)
            kill_after_s = chance.uniform(0, 1) if chance.random() < KILLED_SHARE else None
            failure = self.run(program, kill_after_s)
            with self.lock:
                self.runs += 1
                self.killed += kill_after_s is not None
                if failure:
                    self.failures.append(failure)
                    print(failure, file=sys.stderr, flush=True)

    def run(self, program: tuple[str, str, tuple[str, ...]], kill_after_s: float | None) -> str:
        root, memory, argv = program
        command: list[str | Path] = [
            TORPOR,
            "vm",
            "run",
            "--memory",
            memory,
            root_image(root),
            *argv,
        ]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                stdout, stderr = process.communicate(timeout=kill_after_s or RUN_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                return "" if kill_after_s is not None else f"{argv}: longer than {RUN_LIMIT_S} s"
        result = Result(process.returncode, stdout, stderr)
        if str(result) == str(self.expected[program]):
            return ""
        return f"{argv}: {result}\nnatively: {self.expected[program]}"


class ServerSoak:
    """Servers that are still to be put under load, and what failed; `lock` guards both."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.lock = threading.Lock()
        self.left = list(SERVERS)
        self.failures: list[str] = []

    def work(self) -> None:
        while True:
            with self.lock:
                if not self.left:
                    return
                server = self.left.pop(0)
            try:
                self.run(server)
            except Exception as error:
                with self.lock:
                    self.failures.append(f"{server.name}: {error!r}")

    def run(self, server: Server) -> None:
        part_s = self.seconds / 3
        with running(server) as (address, pid):
            answers = put_under_load(server, address, part_s)
            early_kib = anonymous_kib(pid) - server.stored_kib(address)
            answers += put_under_load(server, address, 2 * part_s)
            late_kib = anonymous_kib(pid) - server.stored_kib(address)
        print(
            f"soak: {server.name}: {answers} answers, {early_kib} then {late_kib} KiB", flush=True
        )
        if late_kib > early_kib + GROWTH_KIB:
            raise MemoryError(f"the VM process grew from {early_kib} to {late_kib} KiB")


def soak_servers() -> list[str]:
    soak = ServerSoak(60 * float(os.environ.get("SOAK_SERVER_MINUTES", "3")))
    workers = [threading.Thread(target=soak.work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return soak.failures


def vm_processes() -> list[int]:
    """Processes that run the binary of this build: others may have VMs of their own."""
    vmm = TORPOR.with_name("torpor-vmm")
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                program = (entry / "exe").readlink()
            except OSError:  # gone, or another user's
                continue
            if program == vmm:
                found.append(int(entry.name))
    return found


def main() -> int:
    problem = kvm_problem()
    if problem is not None:
        print(f"soak: {problem}", file=sys.stderr)
        return 1
    minutes = float(os.environ.get("SOAK_MINUTES", "10"))
    others = set(vm_processes())
    soak = Soak(time.monotonic() + 60 * minutes)
    workers = [threading.Thread(target=soak.work, args=(seed,)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    soak.failures += soak_servers()
    time.sleep(1)
    left = set(vm_processes()) - others
    if left:
        soak.failures.append(f"VM processes left behind: {sorted(left)}")
    print(f"soak: {soak.runs} runs, {soak.killed} to be killed in the middle")
    for failure in soak.failures[:5]:
        print(f"soak: {failure}", file=sys.stderr)
    passed = soak.runs + len(SERVERS) - len(soak.failures)
    print(f"{passed} passed, {len(soak.failures)} failed")
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())

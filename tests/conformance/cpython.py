"""CPython's own regression tests, in a microVM and natively, case by case.

A module is run until each of its cases has an outcome: a case that takes too long or ends the
process has that as its outcome, and the module goes on behind it in a new VM. Outcomes are kept in
build/conformance, so that an interrupted run goes on where it was.
"""

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.conformance.kept import Kept, Side
from tests.harness import DEFAULT_ENVIRONMENT, TORPOR, native_command
from tests.rootfs.build import root_image

ROOT = "cpython-tests"
CASE_LIMIT_S = 60.0
MEMORY = "1G"
KEEP_S = 10.0
"""So often outcomes are kept while a module runs."""
EMPTY_RUNS = 3
"""After so many runs without a case a module is given up: on a busy machine one is not enough."""

MODULES = (
    "test_os", "test_posix", "test_posixpath", "test_signal", "test_threadsignals", "test_eintr",
    "test_subprocess", "test_popen", "test_fork1", "test_wait3", "test_wait4", "test_threading",
    "test_thread", "test_threading_local", "test_threadedtempfile", "test_faulthandler",
    "test_multiprocessing_fork", "test_multiprocessing_spawn", "test_multiprocessing_main_handling",
    "test_concurrent_futures", "test_queue", "test_asyncio", "test_socket", "test_socketserver",
    "test_select", "test_poll", "test_epoll", "test_selectors", "test_mmap", "test_tempfile",
    "test_shutil", "test_pathlib", "test_glob", "test_stat", "test_io", "test_file", "test_fileio",
    "test_pty", "test_openpty", "test_ioctl", "test_time", "test_fcntl", "test_resource",
    "test_sqlite3", "test_ssl", "test_httplib", "test_httpservers", "test_http_cookiejar",
    "test_wsgiref", "test_mailbox", "test_tarfile", "test_zipfile", "test_pwd", "test_grp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case: `passed`, `failed`, `skipped`, `timed out` or `crashed`."""

    word: str
    reason: str = ""


Outcomes = dict[str, Outcome]


def command(module: str, side: Side) -> list[str | Path]:
    words = ("python3", "/srv/cases.py", module)
    if side is Side.NATIVE:
        return native_command(ROOT, *words, alone=True)
    return [TORPOR, "vm", "run", "-i", "--memory", MEMORY, *side.options, root_image(ROOT), *words]


class Run:
    """One run of a module on one side, until it ends or a case has taken too long."""

    def __init__(
        self,
        command: list[str | Path],
        done: Outcomes,
        only: list[str] | None,
        keep: Callable[[Outcomes], None],
    ) -> None:
        self.outcomes: Outcomes = {}
        self._keep = keep
        self._kept_s = time.monotonic()
        self.running: str | None = None
        self.finished = False
        self.timed_out = False
        self.log = b""
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env=DEFAULT_ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
            try:
                self._feed(process, json.dumps({"done": sorted(done), "only": only}).encode())
                self._follow(process)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            log.seek(0)
            self.log = log.read()
        self.status = process.returncode
        if self.running is not None:
            word = "timed out" if self.timed_out else "crashed"
            self.outcomes[self.running] = Outcome(word, self._last_words())

    @staticmethod
    def _feed(process: subprocess.Popen[bytes], wanted: bytes) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(wanted)
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdin = None

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            until_s = time.monotonic() + CASE_LIMIT_S
            while not self.finished:
                if not selector.select(max(0.0, until_s - time.monotonic())):
                    self.timed_out = True
                    return
                chunk = os.read(descriptor, 65536)
                if not chunk:
                    process.wait()
                    return
                until_s = time.monotonic() + CASE_LIMIT_S
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            case, word, *reason = json.loads(line)
        except ValueError:  # a test's own, written past standard output
            return
        if case is None:
            self.finished = True
        elif word == "started":
            self.running = case
        else:
            self.outcomes[case] = Outcome(word, *reason)
            if time.monotonic() > self._kept_s + KEEP_S:
                self._kept_s = time.monotonic()
                self._keep(self.outcomes)
            if case == self.running:
                self.running = None

    def _last_words(self) -> str:
        lines = [line for line in self.log.decode(errors="replace").splitlines() if line.strip()]
        panics = [line for line in lines if "panic" in line.lower()]
        return (panics or lines or [""])[-1][:300]


def read_kept(module: str, side: Side) -> tuple[Outcomes, bool]:
    """The outcomes known of `module` on `side`, and whether those are all."""
    stored = Kept(side, ROOT, module).load()
    if stored is None:
        return {}, False
    return {case: Outcome(**fields) for case, fields in stored["outcomes"].items()}, stored[
        "finished"
    ]


def run_module(module: str, side: Side, only: list[str] | None = None) -> Outcomes:
    """The outcomes of the cases of `module` on `side`, kept ones reused; `only` some: none kept."""
    kept = Kept(side, ROOT, module)
    done, finished = read_kept(module, side) if only is None else ({}, False)
    if not done and only is None:
        kept.log.unlink(missing_ok=True)

    def keep(outcomes: Outcomes, finished: bool) -> None:
        if only is None:
            plain = {case: asdict(outcome) for case, outcome in outcomes.items()}
            kept.store({"finished": finished, "outcomes": plain})

    empty_runs = 0
    while not finished:
        run = Run(command(module, side), done, only, lambda new: keep(done | new, False))
        done.update(run.outcomes)
        empty_runs = 0 if run.outcomes else empty_runs + 1
        finished = run.finished or empty_runs == EMPTY_RUNS
        if only is None:
            with kept.log.open("ab") as file:
                file.write(run.log)
        keep(done, finished)
    return done

"""How `torpor vm run` feels: streams, terminal, signals, exit status, options."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import DEFAULT_ENVIRONMENT, TORPOR, run_command, vm_run
from tests.rootfs.build import make_root, root_image

pytestmark = pytest.mark.kvm


def sh(script: str, *options: str, stdin: bytes | None = None) -> tuple[int, str, str]:
    result = vm_run("busybox", "sh", "-c", script, options=options, stdin=stdin)
    return result.status, result.stdout.decode(), result.stderr.decode()


def test_streams_hold_the_programs_bytes_and_nothing_else() -> None:
    assert sh("printf 'out\\0put'; printf error >&2") == (0, "out\0put", "error")


@pytest.mark.parametrize("options", [(), ("-u", "app")])
def test_streams_can_be_opened_by_name(options: tuple[str, ...]) -> None:
    script = "cat /dev/stdin; echo out >> /dev/stdout; echo err > /proc/self/fd/2"
    assert sh(script, *options, stdin=b"in\n") == (0, "in\nout\n", "err\n")


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_status(status: int) -> None:
    assert sh(f"exit {status}") == (status, "", "")


@pytest.mark.parametrize("name", ["TERM", "KILL", "INT", "SEGV", "USR1"])
def test_exit_status_of_a_signal(name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    script = (
        f"import os, signal; signal.signal({number}, signal.SIG_DFL)"
        if name == "INT"
        else "import os"
    )
    result = vm_run("python", "python3", "-c", f"{script}; os.kill(os.getpid(), {number})")
    assert result.status == 128 + number


def test_standard_input() -> None:
    assert sh("read a; read b; echo $b-$a", stdin=b"one\ntwo\n") == (0, "two-one\n", "")
    data = os.urandom(3 << 20)
    result = vm_run("busybox", "cat", stdin=data)
    assert result.stdout == data


def test_without_i_standard_input_is_empty() -> None:
    result = run_command(
        [TORPOR, "vm", "run", root_image("busybox"), "sh", "-c", "read x; echo $?"], stdin=b"unseen"
    )
    assert (result.status, result.stdout) == (0, b"1\n")


def test_much_output_to_a_slow_reader() -> None:
    command: list[str | Path] = [
        TORPOR,
        "vm",
        "run",
        root_image("busybox"),
        "dd",
        "if=/dev/zero",
        "bs=64k",
        "count=800",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        time.sleep(0.5)
        total = 0
        while chunk := process.stdout.read(1 << 20):
            total += len(chunk)
    assert (process.returncode, total) == (0, 800 * 65536)


def test_a_closed_output_ends_the_program() -> None:
    command = f"{TORPOR} vm run {root_image('busybox')} yes | head -n 2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"y\ny\n"


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">&-", "standard output is closed"),
        ("2>&-", ""),
        ("-i <&-", "standard input is closed"),
        ("-i 0>/dev/null", "standard input is not open for reading"),
        ("1</dev/null", "standard output is not open for writing"),
        ("<&-", None),
    ],
)
def test_streams_that_cannot_be_used_are_refused(redirection: str, said: str | None) -> None:
    """None: without -i nobody reads standard input."""
    option, _, rest = redirection.rpartition(" ")
    command = f"{TORPOR} vm run {option} {root_image('busybox')} echo said {rest}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    if said is None:
        assert (done.returncode, done.stdout, done.stderr) == (0, b"said\n", b"")
    else:
        assert (done.returncode, done.stdout) == (125, b"")
        assert said in done.stderr.decode()


@pytest.mark.parametrize(
    ("script", "redirection", "said"),
    [
        ("echo lost", ">/dev/full", "standard output: No space left on device"),
        ("echo lost >&2", "2>/dev/full", ""),
        ("yes", ">/dev/full", "standard output: No space left on device"),
        ("exit 3", ">/dev/full", None),
        ("echo kept", "2>/dev/full", None),
    ],
)
def test_output_that_cannot_be_written_is_said(script: str, redirection: str, said: str) -> None:
    """As a native program would have seen ENOSPC; None: nothing is lost."""
    command = f"{TORPOR} vm run {root_image('busybox')} sh -c '{script}' {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    if said is None:
        assert (done.returncode, done.stderr) == (3 if "exit" in script else 0, b"")
    else:
        error = done.stderr.decode()
        assert done.returncode == 125
        assert error.count("\n") == bool(said)
        assert said in error


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_output_and_trace_onto_a_full_disk() -> None:
    for option, program, said in (
        ("", "yes", "standard output: No space left"),
        (
            "--trace=/mnt/trace",
            "dd if=/dev/zero of=/dev/null bs=1 count=3000 2>/dev/null",
            "--trace: No space left",
        ),
    ):
        script = (
            f"mount -t tmpfs -o size=64k none /mnt && {TORPOR} vm run {option} "
            f"{root_image('busybox')} sh -c '{program}' >/mnt/output"
        )
        done = subprocess.run(
            ["unshare", "--mount", "bash", "-c", script],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        error = done.stderr.decode()
        assert (done.returncode, error.count("\n")) == (125, 1), error
        assert said in error


def test_default_environment_is_dockers() -> None:
    status, out, _ = sh("echo $PATH; echo $HOME; pwd; id -u; echo ${TERM-unset}")
    assert status == 0
    assert out.splitlines() == [*DEFAULT_ENVIRONMENT.values(), "/", "0", "unset"]
    assert (
        sh("cat /proc/sys/kernel/hostname; echo $HOSTNAME; hostname", "--name", "box")[1]
        == "box\n" * 3
    )


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "inherited")
    monkeypatch.setenv("NOT_ASKED_FOR", "secret")
    out = sh("env", "-e", "A=1", "--env", "B=x y=z", "-e", "FROM_HERE", "-e", "HOME=/h")[
        1
    ].splitlines()
    assert {"A=1", "B=x y=z", "FROM_HERE=inherited", "HOME=/h"} <= set(out)
    assert not [line for line in out if "secret" in line]


def test_workdir_and_user() -> None:
    assert sh("pwd", "-w", "/usr/bin")[1] == "/usr/bin\n"
    assert sh("pwd", "-w", "/made/for/it")[1] == "/made/for/it\n"
    assert sh("id -u; id -g", "-u", "1000:50")[1] == "1000\n50\n"
    assert sh("id -u; id -g; echo $HOME", "-u", "app")[1] == "1000\n1000\n/home/app\n"
    status, _, err = sh("echo x > /etc/x", "-u", "1000:1000")
    assert (status, "ermission denied" in err) == (1, True)


def test_memory() -> None:
    total_kb = int(sh("cat /proc/meminfo", "-m", "128M")[1].split("MemTotal:")[1].split()[0])
    assert 64 << 10 < total_kb <= 128 << 10
    result = vm_run(
        "python", "python3", "-c", "x = []\nwhile True: x.append(bytearray(1 << 20))",
        options=("--memory", "96M"),
    )  # fmt: skip
    if result.status == 137:
        assert b"memory" in result.stderr.lower()
    else:
        assert (result.status, b"MemoryError" in result.stderr) == (1, True)


def test_entrypoint() -> None:
    assert vm_run("busybox", "a", "b", options=("--entrypoint", "echo")).stdout == b"a b\n"


def test_directory_as_root_file_system(tmp_path: Path) -> None:
    options = ("--data", str(tmp_path))
    command: list[str | Path] = [
        TORPOR,
        "vm",
        "run",
        *options,
        f"{make_root('busybox')}/",
        "echo",
        "packed",
    ]
    assert run_command(command).stdout == b"packed\n"
    assert len(list((tmp_path / "cache/rootdirs/images").iterdir())) == 1
    assert run_command(command).stdout == b"packed\n"


def test_relative_paths_are_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root_image("busybox").parent)
    assert run_command([TORPOR, "vm", "run", "./busybox.erofs", "echo", "x"]).stdout == b"x\n"


def test_instance_identity() -> None:
    seen = set()
    for _ in range(2):
        instance = json.loads(sh("cat /run/torpor/instance", "--name", "me")[1])
        assert (instance["name"], instance["generation"]) == ("me", 0)
        seen.add(uuid.UUID(instance["uuid"]))
        seen.add(uuid.UUID(sh("cat /proc/sys/kernel/random/boot_id")[1].strip()))
    assert len(seen) == 4


def test_own_host_name_is_known() -> None:
    ask = "from socket import *; print(*map(gethostbyname, (gethostname(), 'localhost')))"
    result = vm_run("python", "python3", "-c", ask, options=("--name", "own-name"))
    assert result.stdout == b"192.0.2.2 127.0.0.1\n", str(result)


@pytest.mark.parametrize("command", ["poweroff", "halt", "reboot"])
def test_reboot_ends_the_vm(command: str) -> None:
    status, stdout, _ = sh(f"echo before; {command} -f; echo behind; sleep 100")
    assert (status, stdout) == (0, "before\n")


def test_reboot_is_for_root() -> None:
    status, _, stderr = sh("poweroff -f", "--user", "1000")
    assert status == 1
    assert "Operation not permitted" in stderr


def test_a_user_that_is_none_is_refused() -> None:
    """All ones means no change to setuid(2)."""
    assert sh("id", "--user", "4294967295")[0] == 125


def test_nothing_written_stays() -> None:
    assert sh("echo x > /etc/written; cat /etc/written")[1] == "x\n"
    assert sh("cat /etc/written")[0] == 1


def test_random_numbers_differ_between_vms() -> None:
    assert sh("head -c 16 /dev/urandom | hexdump")[1] != sh("head -c 16 /dev/urandom | hexdump")[1]


# --- signals from outside


@contextmanager
def started(
    *argv: str, root: str = "python", options: tuple[str, ...] = ()
) -> Iterator["subprocess.Popen[bytes]"]:
    """A VM whose program has printed its first line."""
    process = subprocess.Popen(
        [TORPOR, "vm", "run", *options, root_image(root), *argv],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 60)
        assert ready, "the program printed nothing within a minute"
        assert process.stdout.readline()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_interrupt_of_a_busy_loop() -> None:
    with started("python3", "-uc", "print('up')\nwhile True: pass") as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert b"KeyboardInterrupt" in err
        assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCONT])
def test_signals_are_handed_on(number: signal.Signals) -> None:
    code = (
        f"import signal, sys, time\nsignal.signal({number:d}, lambda *a: sys.exit(77))\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )
    with started("python3", "-c", code) as process:
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == 77


def test_termination_of_a_sleeping_program() -> None:
    with started("python3", "-uc", "print('up')\nimport time\ntime.sleep(60)") as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode in (143, 128 + signal.SIGTERM)


def test_an_idle_vm_takes_no_processor_time() -> None:
    with started("python3", "-uc", "print('up')\nimport time\ntime.sleep(60)") as process:
        time.sleep(0.2)

        def cpu_ticks() -> int:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])

        before = cpu_ticks()
        time.sleep(1)
        assert cpu_ticks() - before <= 5


# --- terminal


class Terminal:
    """`torpor vm run -it` on a pseudo-terminal."""

    def __init__(
        self,
        *argv: str,
        root: str = "busybox",
        size: tuple[int, int] = (24, 80),
        options: tuple[str, ...] = (),
    ) -> None:
        self.master, slave = pty.openpty()
        self.resize(*size)
        self.process = subprocess.Popen(
            [TORPOR, "vm", "run", "-it", *options, root_image(root), *argv],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def expect(self, pattern: bytes, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.seen)):
            wait_s = deadline - time.monotonic()
            assert wait_s > 0, self.seen
            assert select.select([self.master], [], [], wait_s)[0], self.seen
            try:
                self.seen += os.read(self.master, 4096)
            except OSError:  # EIO: the other end is closed
                raise AssertionError(f"the terminal closed after {self.seen!r}") from None
        self.seen = self.seen[found.end() :]

    def wait(self) -> int:
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.master)


def test_terminal_shell() -> None:
    terminal = Terminal("sh", size=(33, 101))
    terminal.expect(rb"# ")
    terminal.type(b"echo $TERM $((6 * 7)); test -t 0 && stty size\n")
    terminal.expect(rb"xterm 42\r\n")
    terminal.expect(rb"33 101\r\n")
    terminal.resize(50, 120)
    time.sleep(0.2)
    terminal.type(b"stty size\n")
    terminal.expect(rb"50 120\r\n")
    terminal.type(b"exit 9\n")
    assert terminal.wait() == 9


def test_the_terminal_has_a_name() -> None:
    """As in a container: /dev/pts/0, and the same as /dev/console."""
    code = (
        "import os\n"
        "print([os.ttyname(fd) for fd in (0, 1, 2)], os.ctermid())\n"
        "print(os.readlink('/proc/self/fd/0'))\n"
        "here, pts, console = os.fstat(0), os.stat('/dev/pts/0'), os.stat('/dev/console')\n"
        "assert os.path.samestat(here, pts) and os.path.samestat(here, console)\n"
        "print(os.major(here.st_rdev), os.minor(here.st_rdev), oct(here.st_mode), here.st_uid)\n"
        "names = ('/dev/tty', '/dev/console', '/dev/pts/0', '/proc/self/fd/0', '/dev/stdout')\n"
        "for name in names:\n"
        "    with open(name, 'w') as file: print(name, file=file)\n"
        "print(os.listdir('/dev/pts'), os.get_terminal_size().lines)\n"
        "master, slave = os.openpty()\n"
        "print(os.ttyname(slave), os.stat('/proc/self').st_uid)\n"
    )
    terminal = Terminal("python3", "-c", code, root="python", size=(31, 80))
    terminal.expect(rb"\['/dev/pts/0', '/dev/pts/0', '/dev/pts/0'\] /dev/tty\r\n/dev/pts/0\r\n")
    terminal.expect(rb"136 0 0o20620 0\r\n")
    for name in (b"/dev/tty", b"/dev/console", b"/dev/pts/0", b"/proc/self/fd/0", b"/dev/stdout"):
        terminal.expect(name + rb"\r\n")
    terminal.expect(rb"\['0', 'ptmx'\] 31\r\n")
    terminal.expect(rb"/dev/pts/1 0\r\n")
    assert terminal.wait() == 0


def test_the_terminal_belongs_to_the_user() -> None:
    terminal = Terminal("sh", "-c", "tty; echo $(stat -c %U:%a /dev/pts/0)", options=("-u", "app"))
    terminal.expect(rb"/dev/pts/0\r\n")
    terminal.expect(rb"app:620\r\n")
    assert terminal.wait() == 0


def test_without_a_terminal_there_is_no_console() -> None:
    assert sh("tty; ls /dev/console /dev/pts/0 2>&1 | wc -l")[1] == "not a tty\n2\n"


def test_ctrl_c_in_a_terminal() -> None:
    terminal = Terminal("python3", "-c", "print('up')\nwhile True: pass", root="python")
    terminal.expect(rb"up\r\n")
    terminal.type(b"\x03")
    terminal.expect(rb"KeyboardInterrupt")
    assert terminal.wait() == 130


def test_job_control_of_a_shell() -> None:
    terminal = Terminal("bash", "--norc", "-i", root="bash")
    prompt = rb"bash-\S+# "
    terminal.expect(rb"^" + prompt)  # no complaint about job control before it
    terminal.type(b"sleep 1000\n")
    terminal.expect(rb"sleep 1000\r\n")
    time.sleep(0.3)  # until the shell has handed the terminal over, keys are its own
    terminal.type(b"\x1a")
    terminal.expect(rb"\[1\]\+  Stopped +sleep 1000")
    terminal.type(b"bg; jobs\n")
    terminal.expect(rb"\[1\]\+ sleep 1000 &\r\n\[1\]\+  Running +sleep 1000 &\r\n")
    terminal.type(b"cat & wait %2; echo $?\n")
    terminal.expect(rb"\[2\]\+  Stopped\(SIGTTIN\)|\[2\]\+  Stopped +cat")
    terminal.type(b"kill %2; fg %1\n")
    terminal.expect(rb"fg %1\r\n")
    terminal.expect(rb"sleep 1000\r\n")
    time.sleep(0.3)
    terminal.type(b"\x03")
    terminal.expect(prompt)
    terminal.type(b"echo status $?; trap 'echo caught' INT\n")
    terminal.expect(rb"status 130\r\n")
    terminal.type(b"(kill -STOP $BASHPID; echo resumed) & sleep 0.3; fg %%\n")
    terminal.expect(rb"resumed\r\n")
    terminal.type(b"sleep 0.01 | cat; set -m; exit 7\n")
    assert terminal.wait() == 7


def test_size_change_signal() -> None:
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGWINCH, lambda *a: print(os.get_terminal_size()))\n"
        "print('up', os.get_terminal_size().lines)\nsignal.pause()"
    )
    terminal = Terminal("python3", "-c", code, root="python")
    terminal.expect(rb"up 24\r\n")
    terminal.resize(12, 34)
    terminal.expect(rb"columns=34, lines=12")
    assert terminal.wait() == 0


def test_terminal_is_restored() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [TORPOR, "vm", "run", "-it", root_image("busybox"), "true"],
        stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    assert process.wait(60) == 0
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


# --- trace


def test_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    result = vm_run("busybox", "head", "-n", "1", "/etc/hosts", options=(f"--trace={trace}",))
    assert result.stdout.startswith(b"127.0.0.1")
    assert result.stderr == b""
    text = trace.read_text()
    assert re.search(r'open(at)?\((AT_FDCWD, )?"/etc/hosts", O_RDONLY[^)]*\)\s+= 3', text)
    assert re.search(r'write\(1, "127\.0\.0\.1.*, \d+\)\s+= \d+', text)
    assert re.search(r"exit_group\(0\) +=", text)


def test_trace_shows_what_calls_mean(tmp_path: Path) -> None:
    """Flags, structures, results, errors, signals and ends of processes as strace shows them."""
    trace = tmp_path / "trace"
    script = (
        "ls -l /dev/null; cat /missing; sleep 0.01 & wait; trap 'echo caught' USR1; kill -USR1 $$;"
        "kill -KILL $$"
    )
    assert vm_run("busybox", "sh", "-c", script, options=(f"--trace={trace}",)).status == 137
    text = trace.read_text()
    for line in [
        r'^ +\d+ +\d+\.\d{6} execve\("\S+", \["cat", "/missing"\], 0x\w+\) += 0 <\d\.\d{6}>$',
        r'stat\S*\(.*"/dev/null", \{st_mode=S_IFCHR\|0666, st_rdev=makedev\(0x1, 0x3\)',
        r'openat\(AT_FDCWD, "/missing", O_RDONLY\) += -1 ENOENT \(No such file or directory\)',
        r"clone3?\(.*CLONE_CHILD_CLEARTID.*SIGCHLD.*\) = \d+",
        r"wait4\(-1 <unfinished \.\.\.>",
        r"<\.\.\. wait4 resumed>\[\{WIFEXITED\(s\) && WEXITSTATUS\(s\) == 1\}\], 0, NULL\) = \d+",
        r"wait4\(-1, \[\{WIFEXITED\(s\) && WEXITSTATUS\(s\) == 0\}\], WNOHANG, NULL\) = \d+",
        r"nanosleep\(.*\{tv_sec=0, tv_nsec=10000000\}",
        r"--- SIGCHLD \{si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=\d+, si_uid=0, si_status=0,",
        r"rt_sigaction\(SIGUSR1, \{sa_handler=0x\w+, sa_mask=",
        r"--- SIGUSR1 \{si_signo=SIGUSR1, si_code=SI_USER, si_pid=2, si_uid=0\} ---",
        r"\+\+\+ exited with 1 \+\+\+",
        r"\+\+\+ killed by SIGKILL \+\+\+",
    ]:
        assert re.search(line, text, re.MULTILINE), line


def test_trace_to_standard_error() -> None:
    result = vm_run("busybox", "echo", "hello", options=("--trace",))
    assert result.stdout == b"hello\n"
    assert b'write(1, "hello' in result.stderr


def test_trace_lists_what_is_not_implemented() -> None:
    code = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        "print([(libc.syscall(9999), ctypes.get_errno()) for _ in range(3)])"
    )
    result = vm_run("python", "python3", "-c", code, options=("--trace",))
    assert result.stdout == b"[(-1, 38), (-1, 38), (-1, 38)]\n"
    tail = result.stderr.decode()[-2000:]
    assert re.search(r"9999\D+3\b", tail)


def test_clock_reads_do_not_enter_the_kernel(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = "import time\nfor _ in range(1000): time.time(); time.monotonic()"
    assert vm_run("python", "python3", "-c", code, options=(f"--trace={trace}",)).status == 0
    assert trace.read_text().count("clock_gettime(") < 10

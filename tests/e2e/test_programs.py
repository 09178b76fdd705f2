"""Programs that must run unchanged: what they print in a microVM is what they print natively."""

import pytest

from tests.harness import Result, run_native, vm_run

pytestmark = pytest.mark.kvm


def compare(root: str, *argv: str, options: tuple[str, ...] = (), timeout_s: float = 120) -> Result:
    """Both runs must agree in every byte and in the exit status; the result."""
    native = run_native(root, *argv)
    guest = vm_run(root, *argv, options=options, timeout_s=timeout_s)
    assert str(guest) == str(native)
    return guest


def test_static_true() -> None:
    assert compare("programs", "true") == Result(0, b"", b"")


def test_busybox_builtins() -> None:
    assert compare("busybox", "sh", "/srv/builtins.sh").status == 3


@pytest.mark.parametrize(
    "argv",
    [
        ("echo", "hello", "world"),
        ("cat", "/etc/passwd"),
        ("ls", "-lA", "/srv"),
        ("ls", "-R", "/usr"),
        ("sh", "-c", "find /etc -type f | sort"),  # their order: likewise
        ("sha256sum", "/bin/busybox"),
        ("wc", "/etc/passwd", "/etc/group"),
        ("dd", "if=/dev/zero", "of=/tmp/zeros", "bs=64k", "count=100", "status=none"),
        ("sort", "-r", "/etc/passwd"),
        ("stat", "-c", "%n %a %u %s %h %F", "/bin", "/etc/passwd", "/dev/null"),
        # size and links: the file system's affair
        ("stat", "-c", "%n %a %u %F", "/", "/etc", "/tmp"),
        ("id",),
        ("env",),
        ("false",),
        ("cat", "/missing"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_busybox_applets(argv: tuple[str, ...]) -> None:
    if argv == ("env",):  # HOSTNAME is the VM's own
        guest = vm_run("busybox", *argv)
        lines = set(guest.stdout.decode().split("\n"))
        native = run_native("busybox", *argv)
        assert set(native.stdout.decode().split("\n")) <= lines
    else:
        compare("busybox", *argv)


def test_bash_builtins() -> None:
    assert compare("bash", "bash", "/srv/builtins.sh").status == 1


def test_process_substitution() -> None:
    """It opens an end of a pipe by its name in /dev/fd, which the other end may have left."""
    script = "cat <(echo one) <(sleep 0.1; echo two); echo three > >(cat); wait $!"
    assert compare("bash", "bash", "-c", script).status == 0


def test_interpreter_line() -> None:
    """A script is run by the interpreter that its first line names, with its one argument."""
    script = (
        "printf '#!/bin/busybox sh\\necho script $0 $1; exit 5\\n' >/tmp/s; "
        "chmod 755 /tmp/s; exec /tmp/s arg"
    )
    assert compare("busybox", "sh", "-c", script).status == 5


@pytest.mark.parametrize(
    "name", ["threads", "aio", "modules", "tls", "files", "locking", "proc", "signals"]
)
def test_python_script(name: str) -> None:
    compare("python", "python3", f"/srv/{name}.py")


@pytest.mark.parametrize(
    "code",
    [
        "print('hello')",
        "import sys; print(sys.version, sys.path, sys.flags); sys.exit(3)",
        "raise ValueError('traceback on stderr')",
        "import os; os.abort()",
        "import ctypes; ctypes.string_at(0)",
        "import this",
        "import email, http.client, xml.dom, logging.config",
        # /uk is the guest's own.
        "import os; print(sorted({*os.listdir('/')} - {'uk'}), os.getcwd(), sorted(os.environ))",
        "print(sum(i * i for i in range(10**6)), 3**1000 % 10**9)",
        "x = [bytes(10**6) for _ in range(50)]; print(len(b''.join(x)))",
    ],
)
def test_python_command(code: str) -> None:
    if "environ" in code:
        code = code.replace("sorted(os.environ)", "sorted(set(os.environ) - {'HOSTNAME'})")
    compare("python", "python3", "-c", code)


def test_nodejs() -> None:
    assert compare("node", "node", "/srv/all.js", options=("--memory", "1G")).status == 5


def test_bun() -> None:
    assert compare("bun", "bun", "/srv/all.ts", options=("--memory", "1G")).status == 6


def test_static_go_program() -> None:
    assert compare("programs", "goroutines").status == 3


def test_musl_program() -> None:
    assert compare("programs", "hello", "one", "two words").status == 7


@pytest.mark.parametrize(
    ("root", "argv", "status"),
    [
        ("perl", ("perl", "/srv/all.pl"), 4),
        ("php", ("php", "/srv/all.php"), 9),
        ("ruby", ("ruby", "/srv/all.rb"), 8),
    ],
    ids=["perl", "php", "ruby"],
)
def test_other_interpreters(root: str, argv: tuple[str, ...], status: int) -> None:
    assert compare(root, *argv).status == status


@pytest.mark.parametrize(
    "name", ["registers", "memory", "memory_random", "faults", "clocks", "spin_epoll"]
)
def test_kernel_interface(name: str) -> None:
    """Programs that check for themselves what manual pages promise."""
    assert compare("programs", name).status == 0

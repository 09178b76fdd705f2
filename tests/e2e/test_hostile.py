"""Programs that mean ill: the guest kernel stands them, and gives the errors that Linux gives."""

import pytest

from tests.harness import Result, run_native, vm_run

pytestmark = pytest.mark.kvm

TIMEOUT_S = 300.0


def run(kind: str, *arguments: str) -> Result:
    return vm_run("programs", "hostile", kind, *arguments, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("seed", range(1, 4))
def test_random_calls(seed: int) -> None:
    """Hostile pointers and lengths in every system call; `hostile calls SEED` repeats it."""
    assert run("calls", str(seed), "4") == Result(0, b"many calls\n", b"")


@pytest.mark.parametrize("seed", range(1, 4))
def test_random_tracers(seed: int) -> None:
    """Hostile requests of ptrace(2); `hostile traces SEED` repeats it."""
    assert run("traces", str(seed), "4") == Result(0, b"many rounds\n", b"")


def test_fork_bomb() -> None:
    assert run("forks", "1", "3") == Result(0, b"forks again: 1\n", b"")


def test_descriptor_exhaustion() -> None:
    native = run_native("programs", "hostile", "descriptors", alone=True)
    assert str(run("descriptors")) == str(native)


def test_a_million_sockets() -> None:
    result = vm_run(
        "programs", "hostile", "sockets", options=("--memory", "1G"), timeout_s=TIMEOUT_S
    )
    assert (result.status, result.stdout) == (0, b"socket again: 1\n"), str(result)


def test_sockets_until_memory_is_short() -> None:
    """The program may be ended, not the VM (125)."""
    assert run("sockets").status in (0, 128 + 9)


def test_listen_flood() -> None:
    said = b"then EADDRINUSE\na backlog: 1\nserves again: 1\n"
    assert run("listens", "1", "3") == Result(0, said, b"")


def test_signal_storm() -> None:
    assert run("signals", "1", "3") == Result(0, b"caught some: 1\n", b"")


def test_memory_exhaustion() -> None:
    result = run("memory", "1", "4")
    assert (result.status, result.stdout) == (0, b"memory again: 1\n"), str(result)


def test_results_when_memory_is_used_up() -> None:
    """What a call has done is not lost because nothing is left for what it says of it."""
    result = vm_run("programs", "memory_used_up", timeout_s=TIMEOUT_S)
    results = [line.split(", ") for line in result.stdout.decode().splitlines()]
    assert [done for done, _ in results] == [
        "wait4 1 7",
        "accept 0 1",
        "recvfrom 0 datagram",
        "recvmsg 0 datagram",
        "SCM_RIGHTS 0 1",
        "sigtimedwait 0 42",
        "epoll_wait 1 42",
        "msgrcv 0 queued",
        "pipe2 0 1",
        "handler 1",
    ], str(result)
    assert {holder for _, holder in results} == {"holder ended"}, str(result)


@pytest.mark.parametrize("used_mib", [38, 42, 50])
def test_large_tables_of_the_kernel(used_mib: int) -> None:
    """Text of /proc/self/maps that is longer than 2 MiB, wherever used memory ends."""
    code = f"""
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mmap.restype = ctypes.c_void_p
held = b"x" * ({used_mib} << 20)
for n in range(60000):
    libc.mmap(None, 4096, n % 2, 0x22, -1, 0)  # readable or not, so that none is joined
print(len(open("/proc/self/maps").read()) > 2 << 20)
"""
    result = vm_run("python", "python3", "-c", code, options=("--memory", "256M"))
    assert result == Result(0, b"True\n", b"")

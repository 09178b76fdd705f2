"""What the VM process does on a stock kernel's kvm-amd is what programs do natively."""

import subprocess
from pathlib import Path

import pytest

from tests.harness import TORPOR, Result, run_native
from tests.rootfs.build import root_image
from tests.stock_kvm.machine import BUILD, Command, StockKvmMachine

VMM = TORPOR.with_name("torpor-vmm")

# QEMU's emulation, not KVM, lacks SSE exceptions that are not masked.
NOT_EMULATED = ("SSE division by zero",)

PROGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "boot": ("programs", ("true",)),
    "busybox": ("busybox", ("sh", "/srv/builtins.sh")),
    "musl threads": ("programs", ("hello", "one", "two words")),
    "registers": ("programs", ("registers",)),
    "memory": ("programs", ("memory",)),
    "faults and signals": ("programs", ("faults",)),
    "clocks": ("programs", ("clocks",)),
    "traced calls": ("programs", ("trace_calls",)),
    "single steps and registers": ("programs", ("trace_steps",)),
    "thread beside server": ("programs", ("spin_epoll",)),
    "CPython": ("python", ("python3", "-c", "import sys, json; print(json.dumps(sys.version))")),
    "CPython threads": ("python", ("python3", "/srv/threads.py")),
    "CPython signals": ("python", ("python3", "/srv/signals.py")),
}


def vmm_with_libraries() -> dict[str, Path]:
    """torpor-vmm and the shared libraries that it needs, by their places in the machine."""
    listed = subprocess.run(["ldd", VMM], check=True, capture_output=True, text=True).stdout
    libraries = [word for word in listed.split() if word.startswith("/")]
    return {"torpor-vmm": VMM, **{path.lstrip("/"): Path(path) for path in libraries}}


@pytest.fixture(scope="session")
def results() -> dict[str, Result | None]:
    """All programs' results from one boot."""
    images = sorted({root for root, _ in PROGRAMS.values()})
    files = {f"{name}.erofs": root_image(name) for name in images}
    machine = StockKvmMachine({**vmm_with_libraries(), **files})
    commands = [
        Command(("/torpor-vmm", "run", "--image", f"/{root}.erofs", "--", *argv))
        for root, argv in PROGRAMS.values()
    ]
    return dict(zip(PROGRAMS, machine.run(commands), strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(results: dict[str, Result | None], name: str) -> None:
    guest = results[name]
    assert guest is not None, f"not reached; {BUILD}/console.log has the console"
    native = run_native(PROGRAMS[name][0], *PROGRAMS[name][1])
    if name == "faults and signals":
        assert _emulated_lines(guest) == _emulated_lines(native)
    else:
        assert str(guest) == str(native)


def _emulated_lines(result: Result) -> list[str]:
    lines = result.stdout.decode().splitlines()
    return [line for line in lines if not line.startswith((*NOT_EMULATED, "signal 0 code "))]

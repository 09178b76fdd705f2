"""Snapshots on a stock kernel's kvm-amd: swaps, all ways of restoring, reset, damage, clocks."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.harness import REPOSITORY, Result
from tests.rootfs.build import make_root, root_image
from tests.stock_kvm.machine import BUILD, Command, StockKvmMachine
from tests.stock_kvm.test_stock_kvm import vmm_with_libraries

CHECKS = ("reset", "corruption", "clocks", "swap", "late", "late_template")
LIMIT_S = 120


def python_files() -> Iterator[tuple[str, Path]]:
    """CPython with its library, and what of this repository the checks import."""
    root = make_root("python")
    yield "bin/python3", root / "usr/bin/python3.11"
    for path in (root / "usr/lib/python3.11").rglob("*"):
        if path.is_file():
            yield str(path.relative_to(root)), path
    for path in (root / "usr/lib/x86_64-linux-gnu").glob("*.so*"):
        yield f"python-lib/{path.name}", path.resolve()
    messages = Path(msgspec.__file__).parent
    for path in messages.rglob("*"):
        if path.suffix in (".py", ".so"):
            yield f"torpor/msgspec/{path.relative_to(messages)}", path
    for part in ("src/torpor", "tests"):
        for path in (REPOSITORY / part).rglob("*.py"):
            yield f"torpor/{path.relative_to(REPOSITORY)}".replace("/src/", "/"), path


@pytest.fixture(scope="module")
def results() -> dict[str, Result | None]:
    """All checks' results from one boot."""
    images = {f"{name}.erofs": root_image(name) for name in ("programs", "python")}
    files = {**vmm_with_libraries(), **images, **dict(python_files())}
    # The command is looked for beside the program that runs.
    files["bin/torpor-vmm"] = files.pop("torpor-vmm")
    environment = (
        "env",
        "PYTHONHOME=/usr",
        "PYTHONPATH=/torpor",
        "PYTHONDONTWRITEBYTECODE=1",
        "LD_LIBRARY_PATH=/python-lib",
    )
    commands = [
        Command(
            (*environment, "/bin/python3", "-m", "tests.stock_kvm.snapshots", name), limit_s=LIMIT_S
        )
        for name in CHECKS
    ]
    return dict(zip(CHECKS, StockKvmMachine(files).run(commands), strict=True))


@pytest.mark.parametrize("name", CHECKS)
def test_snapshots(results: dict[str, Result | None], name: str) -> None:
    result = results[name]
    assert result is not None, f"not reached; {BUILD}/console.log has the console"
    assert (result.status, result.stdout.splitlines()[-1:]) == (0, [b"ok"]), result

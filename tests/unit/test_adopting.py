"""VM processes that an earlier torpord left, as another one finds them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from torpor.controller.vm import Exit
from torpor.store import Base, Content
from torpor.vmhost import Host
from torpor.vmhost.assignments import Assignments

pytestmark = pytest.mark.anyio
UUID = str(uuid4())


class Listener:
    """Somebody whose VM it is."""

    def ready(self) -> None: ...

    def output(self, data: bytes) -> None: ...

    def ended(self, result: Exit) -> None: ...


async def no_base(base: Base) -> Content:
    raise AssertionError(base)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Path]:
    """The socket of one that says that it is the instance."""
    path = tmp_path / "run" / "vm" / f"{'1f' * 8}.sock"
    path.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.faults.impostor", str(path), UUID, "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert running.stdout is not None
    try:
        assert running.stdout.readline() == b"listening\n"
        yield path
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


async def test_what_the_one_before_wrote_last_counts(tmp_path: Path, process: Path) -> None:
    """One that waits for the data directory may be made long before it has it."""
    host = Host(tmp_path)
    host.begin(no_base, lambda _: None, lambda _: None)
    before = Assignments(process.parent / "assignments")
    before.assign(process, UUID)
    before.close()
    (found,) = await host.adopt(lambda uuid: Listener() if uuid == UUID else None)
    assert found.instance == UUID
    await host.close()

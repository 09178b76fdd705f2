"""A VM process whose start is broken off leaves nothing: nobody would end it."""

import asyncio
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_vmprocess import open_descriptors
from torpor.vmprocess import launch

pytestmark = [pytest.mark.anyio, pytest.mark.kvm]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("when", ["before it is made", "after it is made"])
async def test_a_start_that_is_broken_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The thread that starts it goes on: on a busy machine it may be far behind."""
    reached, may_go_on = threading.Event(), threading.Event()
    made: list[subprocess.Popen[bytes]] = []

    class Slow(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if when == "before it is made":
                self.hold_up()
            super().__init__(*args, **kwargs)
            made.append(self)
            if when == "after it is made":
                self.hold_up()

        def hold_up(self) -> None:
            reached.set()
            assert may_go_on.wait(60)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    descriptors = open_descriptors()
    path = tmp_path / "0123456789abcdef.sock"
    starting = asyncio.create_task(launch(path))
    await asyncio.to_thread(reached.wait)
    starting.cancel()
    asyncio.get_running_loop().call_later(0.05, may_go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await starting
    await asyncio.to_thread(may_go_on.wait)
    try:
        assert [child.poll() for child in made] == [-9]
        assert not path.exists()
        assert open_descriptors() == descriptors
    finally:
        for child in made:
            child.kill()
            child.wait()

"""Where a file's VM processes have their sockets, and the template of its program."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rootfs.build import root_image
from tests.snapshot.vms import Template, make_template


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vm")


@pytest.fixture(scope="module")
def template(directory: Path, request: pytest.FixtureRequest) -> Iterator[Template]:
    """Of the CPython program that the file names as PROGRAM, or else of obey.py."""
    program = Path(__file__).parent / "programs" / getattr(request.module, "PROGRAM", "obey.py")
    command = ["python3", "-u", "-c", program.read_text()]
    made = asyncio.run(make_template(directory, root_image("python"), command))
    yield made
    made.close()

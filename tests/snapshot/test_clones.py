"""Twenty clones of each runtime; `make bench-clones` does a thousand."""

import asyncio
from pathlib import Path

import pytest

from tests.snapshot.clones import (
    NOT_CRYPTOGRAPHIC,
    REPEATING,
    RUNTIMES,
    distinct_values,
    template_of,
)

pytestmark = pytest.mark.kvm

CLONES = 20


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_other_cryptographic_generator_repeats(runtime: str, tmp_path: Path) -> None:
    async def run() -> dict[str, int]:
        template = await template_of(runtime, tmp_path)
        try:
            return await distinct_values(tmp_path, template, CLONES)
        finally:
            template.close()

    distinct = asyncio.run(run())
    repeated = {name for name, count in distinct.items() if count < CLONES}
    assert repeated <= NOT_CRYPTOGRAPHIC | REPEATING.get(runtime, frozenset())

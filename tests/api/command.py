"""The command line, as a process."""

import asyncio
import os
import subprocess
from pathlib import Path

from tests.harness import TORPOR


async def call(
    data_dir: Path, *words: str, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """A command on a data directory, with no terminal and no server in the environment."""

    def run() -> "subprocess.CompletedProcess[str]":
        clean = {name: value for name, value in os.environ.items() if not name.startswith("UKC_")}
        return subprocess.run(
            [TORPOR, "--data", data_dir, *words],
            env={**clean, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return await asyncio.to_thread(run)


async def torpor(
    data_dir: Path, *words: str, status: int = 0, env: dict[str, str] | None = None
) -> str:
    """What a command prints; where its exit status is to be another than 0, its errors."""
    done = await call(data_dir, *words, env=env)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr

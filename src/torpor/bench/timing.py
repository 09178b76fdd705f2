"""Timing whole commands."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from torpor.bench.report import WrongAnswerError


def run_times_ms(
    command: Sequence[str | Path],
    runs: int,
    *,
    warm_up: int = 2,
    expect: bytes = b"",
    env: dict[str, str] | None = None,
) -> list[float]:
    """Milliseconds from just before exec to the exit of `command`, for each of `runs` runs.

    Raises WrongAnswerError if a run fails or prints anything but `expect`.
    """
    times = []
    for number in range(warm_up + runs):
        began = time.perf_counter_ns()
        done = subprocess.run(command, check=False, capture_output=True, env=env, close_fds=False)
        took_ms = (time.perf_counter_ns() - began) / 1e6
        if done.returncode != 0 or done.stdout != expect:
            raise WrongAnswerError(
                f"{' '.join(map(str, command))}: exit status {done.returncode}, "
                f"{done.stdout[:200]!r}, {done.stderr[:300].decode(errors='replace')}"
            )
        if number >= warm_up:
            times.append(took_ms)
    return times


def private_dirty_kib(pid: int) -> int:
    """Private memory of a process that it has written, by /proc/PID/smaps_rollup."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1])
    raise OSError(f"no Private_Dirty in /proc/{pid}/smaps_rollup")

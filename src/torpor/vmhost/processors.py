"""Whether the host has processor time that nobody uses (proc_stat(5))."""

import os
import time
from collections.abc import Callable
from pathlib import Path

SPAN_S = 0.1
"""What is looked back at; the kernel counts in hundredths of a second."""
IDLE_SHARE = 0.1


class Processors:
    """Of the whole host, as of the last look but one."""

    def __init__(
        self,
        idle_s: "Callable[[], float] | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`idle_s` are the seconds that all processors together have had nothing to do."""
        self._idle_s = idle_s or _idle_s
        self._clock = clock
        self._count = os.cpu_count() or 1
        self._seen_s, self._seen_idle_s = clock(), self._idle_s()
        self._is_idle = True

    def have_time(self) -> bool:
        """Whether a tenth of it was left over lately."""
        now_s = self._clock()
        span_s = now_s - self._seen_s
        if span_s >= SPAN_S:
            idle_s = self._idle_s()
            share = (idle_s - self._seen_idle_s) / (span_s * self._count)
            self._seen_s, self._seen_idle_s = now_s, idle_s
            self._is_idle = share >= IDLE_SHARE
        return self._is_idle


def _idle_s() -> float:
    fields = Path("/proc/stat").read_text().split(None, 6)
    idle, waiting_for_disks = int(fields[4]), int(fields[5])
    return (idle + waiting_for_disks) / os.sysconf("SC_CLK_TCK")

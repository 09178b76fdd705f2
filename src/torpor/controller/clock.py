"""A clock that a jump of the host's does not move."""

import time

_ZERO_NS = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def steady_ms() -> int:
    """Milliseconds since 1970 as the host had it when this process began, counted on evenly."""
    return (_ZERO_NS + time.clock_gettime_ns(time.CLOCK_BOOTTIME)) // 1_000_000

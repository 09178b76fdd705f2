"""`torpor top`: what its screen shows of two samples."""

from typing import Any

from torpor.cli.top import Sample, frame

UUIDS = {name: f"00000000-0000-0000-0000-00000000000{n}" for n, name in enumerate("ab")}


def sample(at_s: float, wakes: int, wake_us: list[int], **running: tuple[int, int, int]) -> Sample:
    """`running`: CPU milliseconds, bytes and requests of instances by name."""
    links = [
        {"uuid": UUIDS[name], "name": name, "state": "running", "requests": each[2]}
        for name, each in running.items()
    ]
    usage = {
        UUIDS[name]: {"cpu_time_ms": each[0], "rss_bytes": each[1]}
        for name, each in running.items()
    }
    load: dict[str, Any] = {
        "running": links,
        "proxy": True,
        "wakes": wakes,
        "wake_us": wake_us,
        "store_bytes": {"database": 4_600_000_000, "upper": 2_000_000, "lower": 0},
    }
    return Sample(at_s, {"standby": 999_998, "running": len(running), "stopped": 0}, load, usage)


def test_rates_are_differences() -> None:
    before = sample(10.0, 100, [0, 50, 0, 0], a=(100, 1_000_000, 7))
    now = sample(12.0, 700, [0, 50, 590, 10], a=(1100, 12_300_000, 27), b=(40, 500, 3))
    assert frame(before, now, "cpu", 100, 40) == [
        "instances  1,000,000: 999,998 standby, 2 running",
        "wakes      300.0/s, 700 in all: p50 under 0.004 ms, p99 under 0.008 ms",
        "store      4.6 GB: 4.6 GB database, 2.0 MB upper, 0 B lower",
        "",
        "RUNNING                            CPU %     MEMORY    REQ/S   REQUESTS STATE",
        "a                                   50.0    12.3 MB     10.0         27 running",
        "b                                    2.0      500 B      1.5          3 running",
    ]
    assert frame(before, now, "requests", 100, 40)[-1].startswith("b ")


def test_a_screen_has_bounds() -> None:
    before, now = sample(1, 0, [0]), sample(2, 0, [0], a=(1, 1, 1), b=(2, 1, 1))
    lines = frame(before, now, "cpu", 30, 7)
    assert len(lines) == 7
    assert all(len(line) <= 30 for line in lines)
    assert lines[-1] == "and 1 more"


def test_counters_that_began_again_are_not_negative() -> None:
    before, now = sample(1, 500, [0, 500], a=(90, 1, 90)), sample(2, 20, [0, 20], a=(30, 1, 5))
    lines = frame(before, now, "cpu", 100, 40)
    assert "20.0/s, 20 in all: p50 under 0.002 ms" in lines[1]
    assert lines[-1].split() == ["a", "3.0", "1", "B", "5.0", "5", "running"]

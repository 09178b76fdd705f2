"""Collecting, judging and writing the figures of a benchmark."""

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from torpor.binaries import find_binary

FORMAT_VERSION = 2
"""Version of the JSON file's layout."""


class WrongAnswerError(Exception):
    """What was measured did the wrong thing, so its time means nothing."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure is held against: `statistic` must not be above (or below) `limit`."""

    limit: float
    statistic: Literal["p50", "p99", "p99.9", "max"] = "p50"
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. All values are in `unit`; `floor` is what cannot be beaten here."""

    case: str
    metric: str
    unit: str
    n: int
    p50: float
    p99: float
    p999: float
    max: float
    floor: float | None
    bar: float | None
    met: bool | None

    def line(self, name: str) -> str:
        """`NAME CASE p50 X UNIT p99 Y UNIT (bar Z: met)`, or `NAME CASE X UNIT` for one value."""
        if self.n == 1:
            figures = f"{_number(self.p50)} {self.unit}"
        else:
            figures = f"p50 {_number(self.p50)} {self.unit} p99 {_number(self.p99)} {self.unit}"
        if self.bar is None:
            return f"{name} {self.case} {figures}"
        return f"{name} {self.case} {figures} (bar {_number(self.bar)}: {_verdict(self.met)})"


@dataclass(slots=True)
class Report:
    """The figures of the benchmark `name`, in `directory`/NAME.json as soon as they are known."""

    name: str
    directory: Path = field(default_factory=lambda: Path("build") / "bench")
    rows: list[Row] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def samples(
        self,
        case: str,
        values: Sequence[float],
        unit: str,
        *,
        metric: str = "time",
        floor: float | None = None,
        bar: Bar | None = None,
    ) -> Row:
        """Add a row for `values`, all in `unit`. A bar is held against the statistic it names."""
        if not values:
            raise ValueError(f"{case}: no samples")
        ordered = sorted(values)
        p50, p99, p999 = (percentile(ordered, percent) for percent in (50, 99, 99.9))
        statistics = {"p50": p50, "p99": p99, "p99.9": p999, "max": ordered[-1]}
        met = bar.met_by(statistics[bar.statistic]) if bar else None
        limit = bar.limit if bar else None
        row = Row(case, metric, unit, len(ordered), p50, p99, p999, ordered[-1], floor, limit, met)
        self.rows.append(row)
        self._write()
        return row

    def value(
        self,
        case: str,
        value: float,
        unit: str,
        *,
        metric: str = "value",
        floor: float | None = None,
        bar: Bar | None = None,
    ) -> Row:
        """Add a row for a single value."""
        return self.samples(case, [value], unit, metric=metric, floor=floor, bar=bar)

    def wrong_answer(self, message: str) -> None:
        """Note that something did the wrong thing; the benchmark will exit 1."""
        self.wrong.append(message)

    def finish(self, lines: Collection[str] | None = None) -> int:
        """Print the table and the plain lines; 0, or 1 after a wrong answer.

        `lines` names the cases that get a plain line; all of them if it is None.
        """
        self._write()
        print(self.table())
        for message in self.wrong:
            print(f"{self.name} WRONG: {message}", file=sys.stderr)
        for row in self.rows:
            if lines is None or row.case in lines:
                print(row.line(self.name))
        return 1 if self.wrong else 0

    def _write(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{self.name}.json"
        temporary = path.with_suffix(".json.new")
        temporary.write_text(json.dumps(self._document(), indent=1) + "\n")
        temporary.replace(path)

    def _document(self) -> dict[str, object]:
        return {
            "format": FORMAT_VERSION,
            "name": self.name,
            "commit": commit(),
            "build_profile": build_profile(),
            "host": host(),
            "unix_time_s": int(time.time()),
            "wrong_answers": self.wrong,
            "rows": [asdict(row) for row in self.rows],
        }

    def table(self) -> str:
        """The table for a person."""
        header = ("case", "unit", "n", "p50", "p99", "p99.9", "max", "floor", "bar", "")
        lines: list[tuple[str, ...]] = [header]
        for row in self.rows:
            values = (row.p50, row.p99, row.p999, row.max, row.floor, row.bar)
            figures = [_number(value) for value in values]
            lines.append((row.case, row.unit, str(row.n), *figures, _verdict(row.met)))
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        shown = []
        for line in lines:
            cells = [line[0].ljust(widths[0]), line[1].ljust(widths[1])]
            cells += [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
            shown.append("  ".join(cells).rstrip())
        return "\n".join(shown) + "\n"


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of ascending values: always one of them, never made up."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@cache
def build_profile() -> str:
    """`release` or `debug`, as the installed torpor-vmm says of itself."""
    said = subprocess.run(
        [find_binary("torpor-vmm"), "--version"], check=True, capture_output=True, text=True
    ).stdout
    return said.rsplit("(", 1)[-1].strip(")\n")


def refuse_debug_build() -> None:
    """Exit with a message if the installed torpor-vmm is not a release build."""
    profile = build_profile()
    if profile != "release":
        sys.exit(f"benchmarks need a release build, not {profile}: run make build")


@cache
def commit() -> str:
    """The checked-out commit, with `+` behind it if files differ from it; `unknown` outside git."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return found.stdout.strip() or "unknown"


@cache
def host() -> dict[str, str | int]:
    """What figures depend on, of this machine."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": memory_bytes >> 20,
        "kernel": platform.release(),
        "kvm": "hardware" if _has_virtualisation() else "software",
    }


def _has_virtualisation() -> bool:
    flags = Path("/proc/cpuinfo").read_text()
    return " vmx " in flags or " svm " in flags


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _verdict(met: bool | None) -> str:
    return "" if met is None else "met" if met else "missed"

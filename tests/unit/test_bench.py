"""The benchmark library: percentiles, bars, plain lines and the file."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.bench import Bar, Report, WrongAnswerError, report
from torpor.bench.report import percentile
from torpor.bench.timing import run_times_ms


@pytest.fixture(autouse=True)
def release_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "build_profile", lambda: "release")


def test_lines_file_and_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Report("demo", tmp_path)
    made.samples("fast", [3.0, 1.0, 2.0], "ms", bar=Bar(2))
    made.samples("slow", [30.0, 10.0], "ms", floor=5.0, bar=Bar(20, "p99"))
    made.value("rate", 1234.5, "1/s", bar=Bar(1000, at_least=True))
    made.value("size", 12, "KiB")
    assert made.finish() == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "demo fast p50 2 ms p99 3 ms (bar 2: met)",
        "demo slow p50 10 ms p99 30 ms (bar 20: missed)",
        "demo rate 1234 1/s (bar 1000: met)",
        "demo size 12 KiB",
    ]
    written = json.loads((tmp_path / "demo.json").read_text())
    assert written["name"] == "demo"
    assert written["build_profile"] == "release"
    assert {"commit", "host", "format"} <= set(written)
    assert written["rows"][1] == {
        "case": "slow", "metric": "time", "unit": "ms", "n": 2, "p50": 10.0, "p99": 30.0,
        "p999": 30.0, "max": 30.0, "floor": 5.0, "bar": 20, "met": False,
    }  # fmt: skip


def test_a_wrong_answer_is_an_exit_status(tmp_path: Path) -> None:
    made = Report("demo", tmp_path)
    made.value("x", 1, "ms", bar=Bar(0.5))
    made.wrong_answer("2 + 2 was 5")
    assert made.finish() == 1
    assert json.loads((tmp_path / "demo.json").read_text())["wrong_answers"] == ["2 + 2 was 5"]


def test_a_debug_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "build_profile", lambda: "debug")
    with pytest.raises(SystemExit, match="release build, not debug"):
        report.refuse_debug_build()


def test_commands_that_fail_or_print_something_else_are_wrong_answers() -> None:
    assert len(run_times_ms([sys.executable, "-c", "print(1)"], 2, expect=b"1\n")) == 2
    for code in ("print(2)", "print(1); raise SystemExit(3)"):
        with pytest.raises(WrongAnswerError):
            run_times_ms([sys.executable, "-c", code], 1, expect=b"1\n")


@given(st.lists(st.integers(), min_size=1), st.integers(0, 100))
def test_percentiles_are_samples_in_order(values: list[int], percent: int) -> None:
    ordered = sorted(values)
    assert percentile(ordered, percent) in ordered
    assert percentile(ordered, 0) == ordered[0]
    assert percentile(ordered, 100) == ordered[-1]
    assert percentile(ordered, percent) <= percentile(ordered, min(100, percent + 1))

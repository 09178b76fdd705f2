"""`torpor bench density` on real VMs: interrupted, taken up again, and its audit passed."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, TORPOR
from tests.images.standins import add_bases
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

COUNT = 2000
TIMEOUT_S = 600


def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir(mode=0o700)
    add_bases(ImageStore(images), tmp_path, ["oven/bun:1"])
    words: list[str | Path] = [TORPOR, "--data", images, "bench", "density", "--out", out]
    words += ["--count", str(COUNT), "--sample", "5", "--rest", "0.1", "--cooldown", "1"]
    with subprocess.Popen(
        [*words, "--rate", "10"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if " started" in line and not line.startswith("0 of"):
                process.send_signal(signal.SIGINT)
                break
        said += list(process.stderr)
        assert process.wait(TIMEOUT_S) == 130, said
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "instances that were started before" in done.stderr
    assert "Audit: passed" in (out / "report.md").read_text()
    lines = [line for line in done.stdout.splitlines() if line.startswith("density ")]
    assert [line.split(" p50")[0] for line in lines[:2]] == [
        f"density start at {COUNT}",
        f"density wake at {COUNT}",
    ]
    rows = {row["case"]: row for row in json.loads((out / "density.json").read_text())["rows"]}
    assert rows[f"wake at {COUNT}"]["n"] == 5
    assert rows["disk per instance"]["p50"] > 0

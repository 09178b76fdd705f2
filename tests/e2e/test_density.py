"""`torpor bench density` on real VMs: interrupted, its disk filled up, and its audit passed."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, TORPOR, small_disk
from tests.images.standins import add_bases
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

COUNT = 2000
TIMEOUT_S = 600
DISK_MB = 900
"""What the image takes while it is brought there, and more."""
ROOM_BYTES = 3 << 20
"""For a few hundred instances."""


def test_a_run_goes_on_behind_an_interruption_and_a_full_disk(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir(mode=0o700)
    add_bases(ImageStore(images), tmp_path, ["oven/bun:1"])
    with small_disk(tmp_path / "disk", DISK_MB) as disk:
        interrupted_filled_and_finished(images, disk)


def interrupted_filled_and_finished(images: Path, disk: Path) -> None:
    out = disk / "out"
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
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - ROOM_BYTES)
    full = finished(words)
    assert full.returncode == 125, full.stderr
    assert "no space left on the server's disk" in full.stderr
    filler.unlink()
    done = finished(words)
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


def finished(words: "list[str | Path]") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )

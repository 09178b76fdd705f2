"""The list of what does not work yet names tests that exist."""

import subprocess
import sys

from tests.conftest import pending_tests
from tests.harness import REPOSITORY


def test_every_entry_names_a_test() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "--run-pending", "tests"],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    nodes = [line for line in done.stdout.splitlines() if line.startswith("tests/")]
    for entry in pending_tests():
        assert any(n == entry or n.startswith((f"{entry}::", f"{entry}[")) for n in nodes), entry

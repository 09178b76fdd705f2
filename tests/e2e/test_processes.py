"""Processes, groups, signals, futexes, credentials: what programs see is as natively."""

import pytest

from tests.e2e.test_programs import compare

pytestmark = pytest.mark.kvm

COMPARED = [
    "process_wait",
    "process_groups",
    "process_signals",
    "process_futex",
    "process_ids",
    "process_tty",
]


@pytest.mark.parametrize("name", COMPARED)
def test_processes(name: str) -> None:
    assert compare("programs", name).status == 0

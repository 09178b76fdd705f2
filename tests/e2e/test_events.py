"""Waiting for events, and files: what programs see of both is as natively."""

import pytest

from tests.e2e.test_programs import compare

pytestmark = pytest.mark.kvm

COMPARED = [
    "event_pipes", "event_polls", "event_epoll", "event_timers", "event_files", "waiters",
    "event_signals", "file_locks", "file_data", "file_names",
]  # fmt: skip


@pytest.mark.parametrize("name", COMPARED)
def test_events(name: str) -> None:
    assert compare("programs", name).status == 0

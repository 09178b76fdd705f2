"""Waiting for events: what programs see of pipes, polling, timers and watches is as natively."""

import pytest

from tests.e2e.test_programs import compare

pytestmark = pytest.mark.kvm

COMPARED = ["event_pipes", "event_polls", "event_epoll", "event_timers", "event_files",
            "file_locks"]


@pytest.mark.parametrize("name", COMPARED)
def test_events(name: str) -> None:
    assert compare("programs", name).status == 0

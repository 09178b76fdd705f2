"""Random programs of system calls do in a microVM what they do natively."""

import pytest

from tests.conformance.fuzz import compare, explain

pytestmark = pytest.mark.kvm

PROGRAMS = 100


def test_random_programs() -> None:
    """`make conformance` runs ten times as many."""
    found = compare(1, PROGRAMS)
    shown = "\n".join(map(str, found[1:10]))
    assert not found, f"{len(found)} differ\n{explain(found[0])}{shown}"

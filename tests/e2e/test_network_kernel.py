"""Sockets inside the guest: what programs see is as natively."""

import pytest

from tests.e2e.test_programs import compare

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("name", ["net_sockets"])
def test_sockets(name: str) -> None:
    assert compare("programs", name).status == 0

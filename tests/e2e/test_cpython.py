"""The quick ones of CPython's own regression tests; `make conformance` runs them all."""

import pytest

from tests.conformance.cases import compare

pytestmark = pytest.mark.kvm

QUICK = ("test_os", "test_posixpath", "test_stat", "test_thread", "test_threadedtempfile",
         "test_popen", "test_openpty", "test_fcntl", "test_epoll", "test_mmap")  # fmt: skip


@pytest.mark.parametrize("module", QUICK)
def test_module(module: str) -> None:
    """Each case that passes natively passes in the guest."""
    found = compare(module)
    assert found.native > 0
    assert found.failed == {}

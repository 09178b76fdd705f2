"""A proxy and a torpord for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proxy import guest
from tests.proxy.daemon import Proxy, Torpord


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    started = Proxy(tmp_path)
    yield started
    started.close()
    guest.end_all()
    print(started.logged())  # shown when the test fails


@pytest.fixture
def torpord(proxy: Proxy) -> Iterator[Torpord]:
    connected = Torpord(proxy.data)
    yield connected
    connected.close()

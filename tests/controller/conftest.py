"""A controller on a fake VM host, without an API."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fake_vm import FakeHost
from tests.images.single import add_single_file_image
from torpor.controller import Controller
from torpor.controller.restart import Backoff
from torpor.store import Owner, Store

FAST = Backoff(first_s=0.01, limit_s=0.05, healthy_s=1000)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    add_single_file_image(tmp_path, "web")
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
async def owner(store: Store) -> Owner:
    return await store.owners.add("ada")


@pytest.fixture
async def controller(store: Store, host: FakeHost, tmp_path: Path) -> AsyncIterator[Controller]:
    controller = Controller(tmp_path, store, host, backoff=FAST)
    await controller.open()
    yield controller
    await controller.close()

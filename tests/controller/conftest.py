"""A controller on a fake VM host, without an API."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.fake_vm import FakeHost
from tests.images.single import add_single_file_image
from tests.proxy_peer import ProxyPeer
from torpor.controller import Controller
from torpor.controller.model import ScaleToZero, Service
from torpor.controller.proxy import ProxyClient
from torpor.controller.requests import CreateInstance, Domain, ServiceGroupSpec
from torpor.controller.restart import Backoff
from torpor.store import InstanceRow, Owner, Store

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


@pytest.fixture
async def peer(tmp_path: Path, store: Store) -> AsyncIterator[ProxyPeer]:
    assert store
    peer = ProxyPeer(tmp_path)
    peer.start()
    yield peer
    await peer.close()


@pytest.fixture
async def served(
    store: Store, host: FakeHost, tmp_path: Path, peer: ProxyPeer
) -> AsyncIterator[Controller]:
    """A controller with a connection to the proxy's stand-in."""
    assert peer
    client = ProxyClient(tmp_path / "run" / "proxy.sock", {"server": "x"})
    controller = Controller(tmp_path, store, host, links=client, backoff=FAST)
    await controller.open()
    client.start(controller.router)
    await client.ready.wait()
    yield controller
    await client.close()
    await controller.close()


def row_of(controller: Controller, row: InstanceRow) -> InstanceRow:
    """As it is in the store now."""
    found = controller.store.instances.by_id(row.id)
    assert found is not None
    return found


async def running(
    controller: Controller, owner: Owner, name: str, *, domain: str = "", **policy: object
) -> InstanceRow:
    """An instance behind NAME.localhost that runs."""
    group = ServiceGroupSpec(
        services=[Service(port=80, destination_port=8080)], domains=[Domain(name=domain or name)]
    )
    wanted = {"policy": "on", "stateful": True, **policy}
    request = CreateInstance(
        image="web",
        name=name,
        autostart=True,
        service_group=group,
        scale_to_zero=msgspec.convert(wanted, ScaleToZero),
    )
    (row,) = await controller.create(owner, [request])
    assert isinstance(row, InstanceRow), row
    assert await controller.wait(row, "running", 30) == ("running", True)
    return row

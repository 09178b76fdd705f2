"""A server on a fake VM host, and the official SDK as its client."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import unikraft_cloud

from tests.fake_vm import FakeHost
from tests.images.single import add_single_file_image
from torpor.api.service import Service
from torpor.controller.restart import Backoff
from torpor.torpord import Settings, serving

FAST = Backoff(first_s=0.01, limit_s=0.05, healthy_s=1000)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    add_single_file_image(directory, "web")
    return directory


@pytest.fixture
async def server(data_dir: Path, host: FakeHost) -> AsyncIterator[Service]:
    settings = Settings(data_dir, listen="127.0.0.1:0", backoff=FAST)
    async with serving(settings, host) as service:
        yield service


@pytest.fixture
def token(server: Service, data_dir: Path) -> str:
    assert server
    return (data_dir / "token").read_text().strip()


@pytest.fixture
async def sdk(server: Service, token: str) -> AsyncIterator[Any]:
    """The SDK, unmodified; every base URL is this server's."""
    async with unikraft_cloud.UnikraftCloud(
        token=token,
        metro=server.endpoint,
        control_plane_url=server.endpoint,
        build_url=server.endpoint,
    ) as client:
        yield client


@pytest.fixture
async def http(server: Service, token: str) -> AsyncIterator[httpx.AsyncClient]:
    """Plain HTTP, for what the SDK would not send."""
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=server.endpoint, headers=headers, timeout=30) as client:
        yield client

"""What the store tests share."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from torpor.store import InstanceRow, NewInstance, Owner, Store


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
async def owner(store: Store) -> Owner:
    return await store.owners.add("ada")


def new(name: str, **more: object) -> NewInstance:
    """An instance to record, in which only what a test is about is given."""
    values: dict[str, object] = {
        "uuid": str(uuid4()),
        "name": name,
        "state": "stopped",
        "memory_mb": 128,
        "vcpus": 1,
        "created_ms": 1_700_000_000_000,
        "config": b"{}",
    }
    return NewInstance(**{**values, **more})  # type: ignore[arg-type]


async def add(store: Store, owner: Owner, name: str, **more: object) -> InstanceRow:
    """One instance, recorded."""
    (row,) = await store.instances.add(owner.id, [new(name, **more)])
    assert isinstance(row, InstanceRow), row
    return row

"""Generations: conditional commits, large ones as files, tiers, check and backup."""

import asyncio
import hashlib
import os
from pathlib import Path

import apsw
import pytest
from msgspec.structs import replace

from tests.harness import small_disk
from tests.store.conftest import add, new
from torpor.store import (
    ConflictError,
    Content,
    DamagedError,
    InstanceRow,
    NoSpaceError,
    OpenFile,
    Owner,
    Store,
)
from torpor.store.backup import backup
from torpor.store.blobs import BlobFiles
from torpor.store.checking import check
from torpor.store.snapshots import INLINE_MAX_BYTES

pytestmark = pytest.mark.anyio

SMALL = b"small" * 100
LARGE = b"large" * INLINE_MAX_BYTES


def files_of(data: Path) -> list[Path]:
    return sorted(path for path in (data / "blobs").rglob("*") if len(path.name) == 64)


async def content(store: Store, row: InstanceRow) -> bytes:
    found = await store.snapshots.open(row.id)
    assert found is not None
    snapshot, data = found
    assert snapshot.generation == row.generation
    return data.read()


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["inline", "file"])
async def test_a_commit_is_what_is_read_afterwards(store: Store, owner: Owner, data: bytes) -> None:
    row = await add(store, owner, "web")
    row = await store.snapshots.commit(replace(row, state="standby"), Content(data), created_ms=1)
    assert (row.generation, row.state) == (1, "standby")
    assert await content(store, row) == data
    assert store.instances.by_id(row.id) == row


async def test_of_two_commits_from_one_generation_one_wins(store: Store, owner: Owner) -> None:
    row = await add(store, owner, "web")
    contents = [SMALL + bytes([number]) for number in range(10)]
    answers = await asyncio.gather(
        *(store.snapshots.commit(row, Content(data), created_ms=1) for data in contents),
        return_exceptions=True,
    )
    winners = [number for number, answer in enumerate(answers) if isinstance(answer, InstanceRow)]
    losers = [answer for answer in answers if isinstance(answer, ConflictError)]
    assert (len(winners), len(losers)) == (1, 9)
    winner = answers[winners[0]]
    assert isinstance(winner, InstanceRow)
    assert await content(store, winner) == contents[winners[0]]
    assert "discarded" in str(losers[0])


async def test_a_blob_lives_as_long_as_something_refers_to_it(
    store: Store, owner: Owner, tmp_path: Path
) -> None:
    first, second = await add(store, owner, "a"), await add(store, owner, "b")
    first = await store.snapshots.commit(first, Content(LARGE), created_ms=1)
    second = await store.snapshots.commit(second, Content(LARGE), created_ms=1)
    assert len(files_of(tmp_path)) == 1
    first = await store.snapshots.commit(first, Content(SMALL), created_ms=1)
    assert len(files_of(tmp_path)) == 1
    assert await store.remove_instances([second]) == [None]
    assert files_of(tmp_path) == []
    assert await content(store, first) == SMALL


async def test_replacing_and_removing_at_once_never_loses_a_blob_in_use(
    store: Store, owner: Owner
) -> None:
    rows = [await add(store, owner, str(number)) for number in range(8)]

    async def cycle(row: InstanceRow) -> InstanceRow:
        for number in range(6):
            data = LARGE if number % 2 else LARGE + b"x"
            row = await store.snapshots.commit(row, Content(data), created_ms=1)
            assert await content(store, row) == data
        return row

    rows = list(await asyncio.gather(*(cycle(row) for row in rows)))
    for row in rows:
        assert await content(store, row) == LARGE


async def test_damaged_content_is_refused(store: Store, owner: Owner, tmp_path: Path) -> None:
    row = await store.snapshots.commit(await add(store, owner, "a"), Content(LARGE), created_ms=1)
    (path,) = files_of(tmp_path)
    path.write_bytes(LARGE[:-1] + b"?")
    with pytest.raises(DamagedError, match="will not be run"):
        await content(store, row)
    problems = list(check(tmp_path / "torpor.db", BlobFiles(tmp_path / "blobs")))
    assert len(problems) == 1
    assert "is damaged" in problems[0]
    assert row.uuid in problems[0]


async def test_cold_blobs_move_to_the_lower_tier_and_are_read_from_there(tmp_path: Path) -> None:
    data, lower = tmp_path / "data", tmp_path / "lower"
    data.mkdir()
    store = Store(data, lower=lower)
    try:
        owner = await store.owners.add("ada")
        old = await store.snapshots.commit(
            await add(store, owner, "a"), Content(LARGE), created_ms=1
        )
        young = LARGE + b"young"
        kept = await store.snapshots.commit(
            await add(store, owner, "b"), Content(young), created_ms=9
        )
        assert await store.snapshots.cool(unused_since_ms=5, keep_bytes=10 * len(LARGE)) == 1
        assert [path.name for path in files_of(data)] == [hashlib.sha256(young).hexdigest()]
        assert await content(store, old) == LARGE
        assert await store.snapshots.cool(unused_since_ms=0, keep_bytes=0) == 1
        assert files_of(data) == []
        assert await content(store, kept) == young
        assert list(check(data / "torpor.db", BlobFiles(data / "blobs", lower))) == []
        await store.remove_instances([kept])
        assert len(list(lower.glob("??/*"))) == 1
    finally:
        store.close()


async def test_a_backup_while_running_restores_everything(
    store: Store, owner: Owner, tmp_path: Path
) -> None:
    rows = [await add(store, owner, str(number)) for number in range(6)]
    stop, all_committed = asyncio.Event(), asyncio.Event()
    committed: dict[str, bytes] = {}

    async def churn(row: InstanceRow) -> None:
        number = 0
        while not stop.is_set():
            data = (LARGE if number % 2 else SMALL) + f"{row.name}-{number}".encode()
            row = await store.snapshots.commit(row, Content(data), created_ms=1)
            committed[row.uuid] = data
            if len(committed) == len(rows):
                all_committed.set()
            number += 1

    (tmp_path / "snapshot.key").write_bytes(b"k" * 32)
    churning = [asyncio.create_task(churn(row)) for row in rows]
    await all_committed.wait()
    target = tmp_path / "backup"
    await asyncio.to_thread(backup, tmp_path, target, BlobFiles(tmp_path / "blobs"))
    stop.set()
    await asyncio.gather(*churning)

    assert (target / "snapshot.key").read_bytes() == b"k" * 32
    assert list(check(target / "torpor.db", BlobFiles(target / "blobs"))) == []
    restored = Store(target)
    try:
        for row in rows:
            copy = restored.instances.find(owner.id, "instance", uuid=row.uuid)
            data = await content(restored, copy)
            assert data.endswith(f"{row.name}-{copy.generation - 1}".encode())
    finally:
        restored.close()


async def test_newer_databases_are_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    connection = apsw.Connection(str(tmp_path / "torpor.db"))
    connection.pragma("user_version", 999)
    connection.close()
    with pytest.raises(DamagedError, match="use the newer torpor"):
        Store(tmp_path)


async def test_a_full_disk_refuses_writes_and_recovers(store: Store, owner: Owner) -> None:
    row = await store.snapshots.commit(await add(store, owner, "a"), Content(SMALL), created_ms=1)

    def limit(connection: apsw.Connection, pages: int) -> None:
        connection.pragma("max_page_count", pages)

    database = store._database
    await database.between_commits(lambda connection: limit(connection, 1))
    refused = await asyncio.gather(
        *(
            store.instances.add(owner.id, [new(f"n{number}", config=b"x" * 9000)])
            for number in range(4)
        ),
        return_exceptions=True,
    )
    assert all("no space left" in str(error) for error in refused), refused
    assert await content(store, row) == SMALL
    await database.between_commits(lambda connection: limit(connection, 1 << 30))
    await add(store, owner, "b", config=b"x" * 9000)


async def test_a_large_file_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    """It is copied from the memory that a VM process put it into, piece by piece."""
    file = OpenFile(os.memfd_create("large"))
    os.write(file.number, os.urandom(1 << 20) * 16)
    with small_disk(tmp_path / "data", 8) as data:
        store = Store(data)
        try:
            owner = await store.owners.add("ada")
            row = await store.snapshots.commit(
                await add(store, owner, "a"), Content(LARGE), created_ms=1
            )
            with pytest.raises(NoSpaceError):
                await store.snapshots.commit(row, Content(file), created_ms=2)
            assert list((data / "blobs" / "staging").iterdir()) == []
            assert await content(store, row) == LARGE
            os.truncate(file.number, 1 << 20)
            row = await store.snapshots.commit(row, Content(file), created_ms=3)
            assert await content(store, row) == Content(file).read()
        finally:
            store.close()

"""What was acknowledged is there after a loss of power, and after SIGKILL at any moment."""

import asyncio
import json
import os
import random
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from tests.store.conftest import add
from tests.store.power import Operation, RecordingDisk, RecordingVfs, lose_power
from torpor.store import Content, Page, Store
from torpor.store.blobs import BlobFiles
from torpor.store.checking import check
from torpor.store.errors import MissingError, StoreError
from torpor.store.snapshots import INLINE_MAX_BYTES

LARGE = INLINE_MAX_BYTES + 1
Acknowledged = list[tuple[int, str, int, int]]
"""After how many operations of the journal which instance was at which generation, of what size."""


def record(
    root: Path, *, synchronous: Literal["FULL", "OFF"] = "FULL", forget: str = ""
) -> tuple[list[Operation], Acknowledged]:
    """Commits to a few instances on a recorded disk."""
    journal: list[Operation] = []
    acknowledged: Acknowledged = []
    name = f"power-{secrets.token_hex(4)}"
    vfs = RecordingVfs(name, journal)
    store = Store(root, vfs=name, disk=RecordingDisk(journal, forget), synchronous=synchronous)

    async def run() -> None:
        owner = await store.owners.add("ada")
        rows = [await add(store, owner, str(number)) for number in range(4)]
        for number in range(24):
            row = rows[number % 4]
            size = LARGE if number % 3 else 900
            data = bytes([number]) * size
            rows[number % 4] = row = await store.snapshots.commit(row, Content(data), created_ms=1)
            acknowledged.append((len(journal), row.uuid, row.generation, size))

    asyncio.run(run())
    store.close()
    vfs.unregister()
    return journal, acknowledged


def losses(
    root: Path, journal: list[Operation], acknowledged: Acknowledged, scratch: Path, seed: int
) -> list[str]:
    """Plays one loss of power and says what of the acknowledged is not there."""
    chance = random.Random(seed)
    end = chance.randrange(acknowledged[0][0], len(journal) + 1)
    after = scratch / str(seed)
    for name, content in lose_power(journal[:end], root, chance).items():
        path = after / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("-shm"):  # never synced by SQLite, and made anew
            path.write_bytes(content)
    wanted = {uuid: (made, size) for at, uuid, made, size in acknowledged if at <= end}
    found: list[str] = []
    after.mkdir(exist_ok=True)
    try:
        store = Store(after)
    except (StoreError, OSError) as error:
        return [f"seed {seed}: cannot be opened: {error}"]

    async def look() -> None:
        for uuid, (generation, _) in wanted.items():
            row = store.instances.by_uuid(uuid)
            if row is None or row.generation < generation:
                found.append(f"seed {seed}: {uuid} is behind generation {generation}")
                continue
            try:
                saved = await store.snapshots.open(row.id)
                assert saved is not None
                saved[1].read()
            except (MissingError, StoreError) as error:
                found.append(f"seed {seed}: {error}")

    try:
        asyncio.run(look())
        problems = check(after / "torpor.db", BlobFiles(after / "blobs"))
        found += [f"seed {seed}: {line}" for line in problems if "nothing refers" not in line]
    except Exception as error:  # noqa: BLE001, RUF100 -- a torn database fails in many ways
        found.append(f"seed {seed}: {error!r}")
    finally:
        store.close()
    return found


def test_power_may_fail_at_any_moment(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    journal, acknowledged = record(tmp_path / "data")
    for seed in range(60):
        assert losses(tmp_path / "data", journal, acknowledged, tmp_path / "after", seed) == []


@pytest.mark.parametrize(
    ("synchronous", "forget"), [("OFF", ""), ("FULL", "sync_directory")], ids=["fsync", "directory"]
)
def test_the_replay_notices_a_missing_sync(
    tmp_path: Path, synchronous: Literal["FULL", "OFF"], forget: str
) -> None:
    (tmp_path / "data").mkdir()
    journal, acknowledged = record(tmp_path / "data", synchronous=synchronous, forget=forget)
    found = [
        line
        for seed in range(20)
        for line in losses(tmp_path / "data", journal, acknowledged, tmp_path / "after", seed)
    ]
    assert found


WORKER = """
import asyncio, json, sys
from pathlib import Path
from torpor.store import Content, Store
from torpor.store.snapshots import INLINE_MAX_BYTES

async def main(root):
    store = Store(root)
    store.sweep_staging()
    await store.collect()
    owner = store.owners.find(name="ada")
    print(json.dumps({"ready": True}), flush=True)
    async def churn(row):
        while True:
            number = row.generation
            data = bytes([number % 256]) * (INLINE_MAX_BYTES + 1 if number % 2 else 700)
            row = await store.snapshots.commit(row, Content(data), created_ms=1)
            print(json.dumps({"uuid": row.uuid, "generation": row.generation}), flush=True)
    from torpor.store import Page
    rows = store.instances.page(owner.id, "instance", Page())
    await asyncio.gather(*(churn(row) for row in rows))

asyncio.run(main(Path(sys.argv[1])))
"""


def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    seed = int(os.environ.get("TORPOR_TEST_SEED", secrets.randbelow(1 << 32)))
    print(f"TORPOR_TEST_SEED={seed}")
    chance = random.Random(seed)
    store = Store(tmp_path)

    async def prepare() -> list[str]:
        owner = await store.owners.add("ada")
        return [(await add(store, owner, str(number))).uuid for number in range(5)]

    acknowledged = dict.fromkeys(asyncio.run(prepare()), 0)
    store.close()
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout is not None
            assert json.loads(worker.stdout.readline()) == {"ready": True}
            for _ in range(chance.randrange(1, 60)):
                answer = json.loads(worker.stdout.readline())
                acknowledged[answer["uuid"]] = answer["generation"]
            worker.send_signal(signal.SIGKILL)
            for line in worker.stdout:  # acknowledged before it died
                if line.endswith("\n"):
                    answer = json.loads(line)
                    acknowledged[answer["uuid"]] = answer["generation"]
        store = Store(tmp_path)
        owner = store.owners.find(name="ada")
        for row in store.instances.page(owner.id, "instance", Page()):
            assert row.generation >= acknowledged[row.uuid], seed
            opened = asyncio.run(store.snapshots.open(row.id))
            if opened is not None:
                snapshot, data = opened
                assert snapshot.generation == row.generation
                assert data.read()[0] == (row.generation - 1) % 256
        store.sweep_staging()
        asyncio.run(store.collect())
        problems = list(check(tmp_path / "torpor.db", BlobFiles(tmp_path / "blobs")))
        assert problems == [], seed
        store.close()

"""torpord is killed at random moments of mixed operations; what it acknowledged is there then.

SIGKILL_OPERATIONS (default 500, `make soak` 10,000) operations; TORPOR_TEST_SEED repeats a run.
"""

import asyncio
import os
import random
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import REPOSITORY
from tests.images.single import add_single_file_image
from torpor.store import Page, Store
from torpor.store.blobs import BlobFiles
from torpor.store.checking import check
from torpor.torpord import exclusive

pytestmark = pytest.mark.anyio
OPERATIONS = int(os.environ.get("SIGKILL_OPERATIONS", "500"))
ROUNDS = 5
CLIENTS = 8


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Model:
    """What clients were told. A request that got no answer may or may not have happened."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        """Name of an instance that exists for sure: its tag."""
        self.unsure: set[str] = set()

    async def operate(self, http: httpx.AsyncClient, chance: random.Random, number: int) -> None:
        kind = chance.random()
        existing = [name for name in self.tags if name not in self.unsure]
        if kind < 0.5 or not existing:
            name = f"n{number}"
            self.unsure.add(name)
            body: Any = {"image": "web", "name": name, "tags": [f"t{number}"]}
            body["autostart"] = kind < 0.2
            if number % 2:
                services = [{"port": 443, "destination_port": 8080}]
                body["service_group"] = {"services": services, "domains": [{"name": name}]}
            await self._send(http, "POST", "/v1/instances", body)
            self.tags[name] = f"t{number}"
        else:
            name = chance.choice(existing)
            self.unsure.add(name)
            if kind < 0.7:
                update = {"name": name, "prop": "tags", "op": "set", "value": [f"u{number}"]}
                await self._send(http, "PATCH", "/v1/instances", [update])
                self.tags[name] = f"u{number}"
            elif kind < 0.85:
                await self._send(http, "PUT", "/v1/instances/start", [{"name": name}])
            else:
                await self._send(http, "DELETE", "/v1/instances", [{"name": name}])
                del self.tags[name]
        self.unsure.discard(name)

    async def _send(self, http: httpx.AsyncClient, method: str, path: str, body: Any) -> None:
        answer = await http.request(method, path, json=body)
        assert answer.json()["status"] == "success", answer.text

    def check(self, found: dict[str, tuple[str, ...]]) -> None:
        for name, tag in self.tags.items():
            if name not in self.unsure:
                assert found.get(name) == (tag,), name
        for name, tags in found.items():
            assert name in self.tags or name in self.unsure, f"{name} was deleted"
            assert len(tags) == 1, f"{name} is half done"
        # From here on what is there is known.
        self.tags = {name: tags[0] for name, tags in found.items()}
        self.unsure.clear()


async def test_sigkill_at_random_moments_of_mixed_operations(tmp_path: Path) -> None:
    seed = int(os.environ.get("TORPOR_TEST_SEED", secrets.randbelow(1 << 32)))
    print(f"TORPOR_TEST_SEED={seed}")
    chance = random.Random(seed)
    add_single_file_image(tmp_path, "web")
    model, number = Model(), 0
    for round_ in range(ROUNDS):
        count = OPERATIONS // ROUNDS
        # With several clients, operations are under way when it dies.
        process = await asyncio.to_thread(_start, tmp_path)
        url = (await asyncio.to_thread(process.stdout.readline)).split()[1]  # type: ignore[union-attr]
        headers = {"Authorization": f"Bearer {_token(tmp_path)}"}
        done = 0

        async def client(http: httpx.AsyncClient, fatal: int) -> None:
            nonlocal number, done
            while True:
                number += 1
                try:
                    await model.operate(http, chance, number)
                except httpx.TransportError:
                    return
                done += 1
                if done == fatal:
                    process.send_signal(signal.SIGKILL)  # noqa: B023

        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            fatal = max(count - chance.randrange(count // 4), 1)
            await asyncio.gather(*(client(http, fatal) for _ in range(CLIENTS)))
        await asyncio.to_thread(process.wait)
        assert process.stdout is not None
        process.stdout.close()
        model.check(await asyncio.to_thread(_found, tmp_path))
        assert round_ < ROUNDS


def _token(data: Path) -> str:
    return (data / "token").read_text().strip()


def _start(data: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.fake_torpord", str(data)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def _found(data: Path) -> dict[str, tuple[str, ...]]:
    assert list(check(data / "torpor.db", BlobFiles(data / "blobs"))) == []
    store = Store(data)
    try:
        owner = store.owners.all()[0]
        for group in store.services.page(owner.id):
            is_used = bool(store.instances.of_service(group.id, limit=1))
            # Its last instance was deleted: it is removed behind that.
            assert is_used or group.kill_ms is not None, f"{group.name} is left behind"
        return {row.name: row.tags for row in store.instances.page(owner.id, "instance", Page())}
    finally:
        store.close()


async def test_two_at_once_have_one_winner(tmp_path: Path) -> None:
    processes = [await asyncio.to_thread(_start, tmp_path) for _ in range(2)]
    outputs = await asyncio.gather(*(asyncio.to_thread(_first_line, each) for each in processes))
    assert sorted(line.split(" ")[0] for line in outputs) == ["", "api"]
    for process in processes:
        process.terminate()
        await asyncio.to_thread(process.wait)
    with exclusive(tmp_path):
        pass


def _first_line(process: "subprocess.Popen[str]") -> str:
    with process.stdout:  # type: ignore[union-attr]
        return process.stdout.readline()  # type: ignore[union-attr]

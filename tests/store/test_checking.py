"""`torpor store check`: one damaged byte in each kind of thing, and what can be mended."""

import sqlite3
from pathlib import Path

import pytest

from tests.store.conftest import add, new
from torpor.store import Content, InstanceRow, NewBase, Store, StoreError
from torpor.store.blobs import BlobFiles
from torpor.store.checking import check

pytestmark = pytest.mark.anyio
LARGE = b"large" * 20_000
SMALL = b"a state that is small enough for its row"
TEMPLATE, WARM, UNUSED = b"template" * 20_000, b"warm" * 20_000, b"unused" * 20_000


def flip(path: Path, where: int) -> None:
    """Changes one byte of a file."""
    data = bytearray(path.read_bytes())
    data[where] ^= 0x40
    path.write_bytes(data)


class Kept:
    """A closed store with one of each kind."""

    def __init__(self, root: Path) -> None:
        self.data, self.lower = root / "data", root / "lower"
        self.data.mkdir()
        self.database = self.data / "torpor.db"
        self.files = BlobFiles(self.data / "blobs", self.lower)
        self.rows: dict[str, InstanceRow] = {}

    async def fill(self) -> None:
        store = Store(self.data, lower=self.lower)
        owner = await store.owners.add("ada")

        async def base(content: bytes, **more: object) -> int:
            made = NewBase(owner.id, "sha256:x", b"mac", 9, **more)  # type: ignore[arg-type]
            return (await store.bases.add(made, Content(content))).id

        async def add(name: str) -> InstanceRow:
            (row,) = await store.instances.add(owner.id, [new(name, tags=("red",))])
            assert isinstance(row, InstanceRow), row
            return row

        template_id = await base(TEMPLATE, key=b"k" * 32)
        warm_id = await base(WARM, template_id=template_id)
        unused_id = await base(UNUSED, key=b"u" * 32)
        await base(UNUSED + WARM, template_id=unused_id)
        commit = store.snapshots.commit
        self.rows["cold"] = await commit(await add("cold"), Content(LARGE + b"!"), created_ms=1)
        await store.snapshots.cool(2, 1 << 40)
        self.rows["small"] = await commit(await add("small"), Content(SMALL), created_ms=9)
        self.rows["large"] = await commit(
            await add("large"),
            Content(LARGE),
            created_ms=9,
            template=store.bases.by_id(template_id),
            warm=store.bases.by_id(warm_id),
        )
        store.close()

    def check(self, *, repair: bool = False) -> list[str]:
        return list(check(self.database, self.files, repair=repair))

    def blob(self, content: bytes) -> Path:
        """The file of a blob, in whichever tier."""
        (path,) = [
            path
            for root in (self.data / "blobs", self.lower)
            for path in root.glob("??/*")
            if path.read_bytes() == content
        ]
        return path


@pytest.fixture
async def kept(tmp_path: Path) -> Kept:
    kept = Kept(tmp_path)
    await kept.fill()
    assert kept.check() == []
    return kept


@pytest.mark.parametrize(
    ("content", "whose"),
    [(LARGE, "large"), (LARGE + b"!", "cold"), (TEMPLATE, "large"), (WARM, "large")],
    ids=["a state in a file", "in the lower tier", "a template", "a warm base"],
)
@pytest.mark.parametrize("damage", ["a byte", "the end", "all"])
async def test_damage_is_named_with_whose_it_is(
    kept: Kept, content: bytes, whose: str, damage: str
) -> None:
    path = kept.blob(content)
    if damage == "a byte":
        flip(path, len(content) // 2)
    elif damage == "the end":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    for repair in (False, True):
        (problem,) = kept.check(repair=repair)
        assert f"used by {kept.rows[whose].uuid}: restore it from a backup" in problem


async def test_a_damaged_template_that_nothing_needs_is_let_go(kept: Kept) -> None:
    flip(kept.blob(UNUSED), 7)
    (problem,) = kept.check()
    assert "--repair` mends it" in problem
    mended = kept.check(repair=True)
    assert mended[0].endswith("no instance needs it: mended")
    assert kept.check() == []
    store = Store(kept.data, lower=kept.lower)
    try:
        assert store.bases.by_key(b"u" * 32) is None
        assert store.bases.by_key(b"k" * 32) is not None
    finally:
        store.close()


async def test_a_damaged_row_is_named(kept: Kept) -> None:
    flip(kept.database, kept.database.read_bytes().index(SMALL) + 3)
    (problem,) = kept.check()
    assert problem.startswith(f"instance {kept.rows['small'].uuid}: its snapshot is damaged")


@pytest.mark.parametrize("where", [5, 100], ids=["its header", "its first page"])
async def test_a_damaged_database_is_named(kept: Kept, where: int) -> None:
    flip(kept.database, where)
    problems = kept.check()
    assert problems
    assert all(problem.startswith("database: ") for problem in problems)


async def test_a_reference_to_nothing_is_named(kept: Kept) -> None:
    with sqlite3.connect(kept.database) as connection:
        connection.execute("DELETE FROM bases WHERE template_id IS NOT NULL")
    connection.close()
    assert any("refers to a row of bases that is not there" in each for each in kept.check())


async def test_a_lower_tier_that_was_not_named_is_no_damage(kept: Kept) -> None:
    files = BlobFiles(kept.data / "blobs")
    problems = list(check(kept.database, files, repair=True))
    assert problems
    assert all("is in a lower tier that is not configured" in each for each in problems)
    assert kept.check() == []


async def test_a_lower_tier_has_one_data_directory(kept: Kept, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(StoreError, match="belongs to another data directory"):
        Store(other, lower=kept.lower)
    Store(kept.data, lower=kept.lower).close()


async def test_damaged_blobs_do_not_keep_others_from_going_down(kept: Kept) -> None:
    flip(kept.blob(LARGE), 3)
    kept.blob(WARM).unlink()
    store = Store(kept.data, lower=kept.lower)
    try:
        assert await store.snapshots.cool(1 << 60, 1 << 60) > 0
        assert [path.parent.parent for path in (kept.blob(TEMPLATE),)] == [kept.lower]
    finally:
        store.close()


async def test_check_mends_counters_tags_and_rubbish(tmp_path: Path) -> None:
    store = Store(tmp_path)
    owner = await store.owners.add("ada")
    await add(store, owner, "a", tags=("red",))
    store.close()
    database, files = tmp_path / "torpor.db", BlobFiles(tmp_path / "blobs")
    assert list(check(database, files)) == []
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE totals SET instances = 7")
        connection.execute("DELETE FROM instance_tags")
    connection.close()
    with files.put(Content(b"nobody's")):
        pass
    problems = list(check(database, files))
    assert len(problems) == 3
    assert all("--repair" in problem for problem in problems)
    assert len(list(check(database, files, repair=True))) == 3
    assert list(check(database, files)) == []

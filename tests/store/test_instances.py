"""Recording, finding, listing and counting instances."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.store.conftest import add, new
from torpor.store import (
    ConflictError,
    InstanceRow,
    MissingError,
    NameTakenError,
    NewService,
    Owner,
    Page,
    QuotaError,
    Store,
)
from torpor.store.schema import MIGRATIONS

pytestmark = pytest.mark.anyio


def names(rows: Sequence[InstanceRow]) -> list[str]:
    return [row.name for row in rows]


async def test_one_failure_in_a_bulk_leaves_the_others(store: Store, owner: Owner) -> None:
    answers = await store.instances.add(owner.id, [new("a"), new("a"), new("b")])
    assert isinstance(answers[0], InstanceRow)
    assert isinstance(answers[1], NameTakenError)
    assert isinstance(answers[2], InstanceRow)
    assert names(store.instances.page(owner.id, "instance", Page())) == ["a", "b"]


async def test_quota_holds_within_a_bulk_and_between(store: Store, owner: Owner) -> None:
    answers = await store.instances.add(owner.id, [new("a"), new("b"), new("c")], quota=2)
    assert [type(answer) for answer in answers] == [InstanceRow, InstanceRow, QuotaError]
    (again,) = await store.instances.add(owner.id, [new("d")], quota=2)
    assert isinstance(again, QuotaError)


async def test_owners_do_not_see_each_other(store: Store, owner: Owner) -> None:
    other = await store.owners.add("eve")
    mine = await add(store, owner, "web")
    await add(store, other, "web")
    with pytest.raises(MissingError, match="No instance with uuid"):
        store.instances.find(other.id, "instance", uuid=mine.uuid)
    assert len(store.instances.page(other.id, "instance", Page())) == 1


async def test_an_update_from_an_old_revision_is_refused(store: Store, owner: Owner) -> None:
    row = await add(store, owner, "web")
    (written,) = await store.instances.update([replace(row, state="starting")])
    assert isinstance(written, InstanceRow)
    (late,) = await store.instances.update([replace(row, state="stopped")])
    assert isinstance(late, ConflictError)
    found = store.instances.find(owner.id, "instance", name="web")
    assert (found.state, found) == ("starting", written)


async def test_concurrent_updates_of_one_row_have_one_winner(store: Store, owner: Owner) -> None:
    row = await add(store, owner, "web")
    answers = await asyncio.gather(
        *(store.instances.update([replace(row, memory_mb=size)]) for size in range(1, 21))
    )
    winners = [answer for (answer,) in answers if isinstance(answer, InstanceRow)]
    assert len(winners) == 1
    assert store.instances.find(owner.id, "instance", name="web") == winners[0]


async def test_an_instance_of_a_service_keeps_the_service(store: Store, owner: Owner) -> None:
    service = await store.services.add(
        owner.id, NewService("5f0c9f57-6b0c-4c53-9d38-2f2a5a3b9d11", "s", 1, (), 1, b"{}")
    )
    row = await add(store, owner, "web", service_id=service.id)
    with pytest.raises(Exception, match="has instances"):
        await store.services.remove(service)
    await store.remove_instances([row])
    await store.services.remove(service)


async def test_a_gone_start_gives_an_empty_page(store: Store, owner: Owner) -> None:
    row = await add(store, owner, "web")
    await store.remove_instances([row])
    assert store.instances.page(owner.id, "instance", Page(start=row.uuid)) == []
    with pytest.raises(MissingError, match="uuid or an ISO"):
        store.instances.page(owner.id, "instance", Page(start="yesterday"))


TAGS = ("red", "green", "blue")
STATES = ("stopped", "running", "standby")
MADE = st.lists(
    st.tuples(st.integers(0, 3), st.sets(st.sampled_from(TAGS)), st.sampled_from(STATES)),
    max_size=12,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    made=MADE,
    tags=st.lists(st.sampled_from(TAGS), max_size=2, unique=True),
    state=st.sampled_from(("", *STATES)),
    descending=st.booleans(),
    count=st.integers(1, 5),
    overlay=st.lists(st.tuples(st.integers(0, 11), st.sampled_from(STATES)), max_size=4),
)
def test_pages_are_what_a_plain_list_would_give(
    store: Store,
    made: list[tuple[int, set[str], str]],
    tags: list[str],
    state: str,
    descending: bool,
    count: int,
    overlay: list[tuple[int, str]],
) -> None:
    async def run() -> None:
        owner = await store.owners.add(f"owner-{len(store.owners.all())}")
        answers = await store.instances.add(
            owner.id,
            [
                new(str(number), created_ms=moment, tags=tuple(sorted(its)), state=its_state)
                for number, (moment, its, its_state) in enumerate(made)
            ],
        )
        rows = [answer for answer in answers if isinstance(answer, InstanceRow)]
        live = {rows[number].id: live_state for number, live_state in overlay if number < len(rows)}
        page = Page(
            count=count,
            descending=descending,
            tags=tuple(tags),
            state=state,
            here=tuple(id_ for id_, its in live.items() if its == state),
            elsewhere=tuple(id_ for id_, its in live.items() if its != state),
        )
        wanted = [
            row.name
            for row in sorted(rows, key=lambda row: (row.created_ms, row.id), reverse=descending)
            if set(tags) <= set(row.tags) and state in ("", live.get(row.id, row.state))
        ]
        # As the SDK pages: the cursor is inclusive, so the next page repeats one.
        seen: list[str] = []
        found = store.instances.page(owner.id, "instance", page)
        while found:
            seen += names(found)
            more = replace(page, start=found[-1].uuid, count=count + 1)
            found = store.instances.page(owner.id, "instance", more)[1:]
        assert seen == wanted
        totals = store.instances.totals(owner.id)
        for each in STATES:
            counted = sum(total.instances for total in totals if total.state == each)
            assert counted == sum(1 for row in rows if row.state == each)

    asyncio.run(run())


async def test_groups_of_an_older_database_go_with_their_last_instance(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / "torpor.db"))
    for script in MIGRATIONS[:5]:
        connection.execute(script)
    connection.pragma("user_version", 5)
    connection.execute("INSERT INTO owners VALUES(1, zeroblob(16), 'ada', x'7b7d')")
    kept, gone = b'{"persistent":true,"services":[]}', b'{"services":[]}'
    for number, document in enumerate((kept, gone, gone), 1):
        uuid = bytes(15) + bytes([number])
        connection.execute(
            "INSERT INTO services(id, uuid, owner_id, name, created_ms, ports, document) "
            "VALUES(?, ?, 1, ?, 1, 0, ?)",
            (number, uuid, f"group{number}", document),
        )
        connection.execute(
            "INSERT INTO instances(id, uuid, owner_id, kind, name, state, memory_mb, vcpus, "
            "service_id, created_ms, tags, config, facts) "
            "VALUES(?, ?, 1, 'instance', ?, 'stopped', 16, 1, ?, 1, '', ?, ?)",
            (number, uuid, f"n{number}", number, b"{}", b"{}"),
        )
    connection.close()
    store = Store(tmp_path)
    first, second, third = store.instances.page(1, "instance", Page())
    assert store.services.to_kill(1, 10) == []
    assert await store.remove_instances([first, second]) == [None, None]
    assert [group.name for group in store.services.to_kill(1, 10)] == ["group2"]
    (moved,) = await store.instances.update([replace(third, service_id=1)])
    assert isinstance(moved, InstanceRow)
    assert [group.name for group in store.services.to_kill(1, 10)] == ["group2", "group3"]
    store.close()

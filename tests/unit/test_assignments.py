"""What is written down of which VM process is which instance."""

from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from torpor.vmhost.assignments import Assignments

SOCKETS = [Path(f"/run/{number:016x}.sock") for number in range(1, 6)]
INSTANCES = [str(UUID(int=number)) for number in range(1, 5)]
Change = tuple[Path, str | None]


@settings(deadline=None)
@given(some.lists(some.tuples(some.sampled_from(SOCKETS), some.sampled_from([*INSTANCES, None]))))
def test_the_next_torpord_reads_what_was_written(changes: list[Change]) -> None:
    expected: dict[Path, str] = {}
    with TemporaryDirectory() as directory:
        path = Path(directory) / "assignments"
        here = Assignments(path)
        for socket, instance in changes:
            expected.pop(socket, None)
            if instance is None:
                here.clear(socket)
            else:
                here.assign(socket, instance)
                expected = {its: other for its, other in expected.items() if other != instance}
                expected[socket] = instance
        for assignments in (here, Assignments(path)):
            found = {its: assignments.of(its) for its in SOCKETS}
            assert {its: one for its, one in found.items() if one is not None} == expected
            assignments.close()


def test_records_of_dead_processes_are_used_again(tmp_path: Path) -> None:
    first = Assignments(tmp_path / "assignments")
    for socket, instance in zip(SOCKETS, INSTANCES, strict=False):
        first.assign(socket, instance)
    first.close()
    size = (tmp_path / "assignments").stat().st_size
    second = Assignments(tmp_path / "assignments")
    second.keep(SOCKETS[:1])
    assert [second.of(socket) for socket in SOCKETS] == [INSTANCES[0], None, None, None, None]
    for number in range(size // 24 - 1):
        second.assign(Path(f"{number + 100:016x}.sock"), str(UUID(int=number + 100)))
    assert (tmp_path / "assignments").stat().st_size == size
    second.close()


@pytest.mark.parametrize("name", ["other.sock", "00ff.sock", f"{'0' * 18}.sock"])
def test_a_socket_that_torpord_did_not_make_is_nobody(tmp_path: Path, name: str) -> None:
    assignments = Assignments(tmp_path / "assignments")
    assert assignments.of(Path(name)) is None
    assignments.close()

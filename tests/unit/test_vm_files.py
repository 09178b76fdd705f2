"""Files of `torpor vm snapshot`: nothing but what was written is read."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.controller.sealing import Seal
from torpor.store import DamagedError
from torpor.vms.files import Description, read_snapshot, write_snapshot

DELTA = b"delta" * 20
TEMPLATE = b"template" * 20
SEAL = Seal(bytes(32))
DESCRIPTION = Description(
    owner="uid:0",
    instance="0" * 32,
    generation=3,
    name="x",
    image="sha256:" + "1" * 64,
    template=f"sha256:{hashlib.sha256(TEMPLATE).hexdigest()}",
    command="sh",
    interactive=True,
    memory="256M",
    created="2026-01-01T00:00:00+00:00",
    delta_bytes=len(DELTA),
    template_bytes=len(TEMPLATE),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.vm"
    write_snapshot(path, DESCRIPTION, DELTA, TEMPLATE, SEAL)
    return path


def test_what_was_written_is_read(file: Path) -> None:
    stored = read_snapshot(file, SEAL)
    assert (stored.description, stored.delta, stored.template) == (DESCRIPTION, DELTA, TEMPLATE)


def test_any_changed_byte_and_any_cut_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for at in range(len(whole)):
        for changed in (
            whole[:at],
            whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :],
            whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :],
        ):
            file.write_bytes(changed)
            with pytest.raises(DamagedError):
                read_snapshot(file, SEAL)
    file.write_bytes(whole + b"\0")
    with pytest.raises(DamagedError):
        read_snapshot(file, SEAL)


@given(content=st.binary(max_size=300))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("files") / "x"
    for prefix in (b"", b"TORPORVM\1\0\0\0", b"TORPORVM\1\0\0\0\2\0\0\0" + bytes(32) + b"{}"):
        path.write_bytes(prefix + content)
        with pytest.raises(DamagedError):
            read_snapshot(path, SEAL)


@pytest.mark.parametrize(
    "other",
    [
        replace(DESCRIPTION, owner="uid:1"),
        replace(DESCRIPTION, instance="2" * 32),
        replace(DESCRIPTION, generation=2),
        replace(DESCRIPTION, image="sha256:" + "2" * 64),
        replace(DESCRIPTION, name="y"),
    ],
)
def test_a_code_is_for_one_state_alone(file: Path, tmp_path: Path, other: Description) -> None:
    """The code of one file in another that says something else of itself."""
    code = file.read_bytes()[16:48]
    forged = tmp_path / "y.vm"
    write_snapshot(forged, other, DELTA, TEMPLATE, SEAL)
    content = forged.read_bytes()
    forged.write_bytes(content[:16] + code + content[48:])
    with pytest.raises(DamagedError):
        read_snapshot(forged, SEAL)


def test_another_key_refuses(file: Path) -> None:
    with pytest.raises(DamagedError, match="another data directory"):
        read_snapshot(file, Seal(bytes([1]) * 32))


def test_what_cannot_be_written_leaves_what_was_there(file: Path) -> None:
    before = file.read_bytes()
    file.parent.chmod(0o700)
    with pytest.raises(TypeError):
        write_snapshot(file, DESCRIPTION, "no bytes", TEMPLATE, SEAL)  # type: ignore[arg-type]
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == [file.name]

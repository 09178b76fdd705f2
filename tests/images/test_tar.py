"""The tar reader against the standard library's, and against everything that it must refuse."""

import bz2
import gzip
import io
import lzma
import tarfile
from contextlib import suppress

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.images.archives import Member, directory, hardlink, symlink, tar
from torpor.images.errors import BadArchiveError, ImageError, LimitExceededError
from torpor.images.limits import Budget, Limits
from torpor.images.streams import BudgetReader, decompressed
from torpor.images.tar import Kind, TarReader

SMALL = Limits(max_bytes=1 << 20, max_inodes=1000, max_devices=4, max_header_bytes=4096)


def read(content: bytes, limits: Limits = SMALL) -> list[tuple[str, Kind, bytes]]:
    budget = Budget(limits)
    source = BudgetReader(decompressed(io.BytesIO(content), "archive"), budget, "archive")
    reader = TarReader(source, budget, "archive")
    return [(entry.display, entry.kind, b"".join(reader.data())) for entry in reader]


names = st.lists(
    st.text(
        st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"),
        min_size=1,
        max_size=60,
    ).filter(lambda part: part not in (".", "..") and len(part.encode()) <= 255),
    min_size=1,
    max_size=5,
).map("/".join)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(names, st.binary(max_size=2000), st.integers(0, 2**31)), max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_reads_what_the_standard_library_writes(
    files: list[tuple[str, bytes, int]], format_: int
) -> None:
    content = tar([Member(name, data, uid=uid) for name, data, uid in files], format_)
    budget = Budget(SMALL)
    reader = TarReader(io.BytesIO(content), budget, "archive")
    found = [(b"/".join(e.path), b"".join(reader.data()), e.uid) for e in reader]
    assert found == [(name.encode(), data, uid) for name, data, uid in files]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 4096),
)
@example([(124, 0xFF)], 4096)
@example([(156, ord("g"))], 4096)
def test_damage_is_an_error_or_another_archive_never_a_crash(
    changes: list[tuple[int, int]], length: int
) -> None:
    members = [
        directory("d"), Member("d/file", b"x" * 700), symlink("l", "d"), hardlink("h", "d/file"),
        Member("x", pax={"SCHILY.xattr.user.a": "b"}), Member("n" * 200, b"y"),
    ]  # fmt: skip
    content = bytearray(tar(members))
    for offset, value in changes:
        content[offset % len(content)] = value
    with suppress(ImageError):
        read(bytes(content[: length if length % 7 else len(content)]))


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=2000), st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh9"])
)
def test_any_bytes_are_an_error_or_an_archive(content: bytes, magic: bytes) -> None:
    with suppress(ImageError):
        read(magic + content)


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        bz2.compress,
        lzma.compress,
        zstandard.compress,
        lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
        lambda data: zstandard.compress(data[:700]) + zstandard.compress(data[700:]),
    ],
)
def test_compressions(compress: "object") -> None:
    plain = tar([Member("a", b"content" * 1000)])
    packed = compress(plain)  # type: ignore[operator]
    assert read(packed) == [("a", Kind.FILE, b"content" * 1000)]
    with pytest.raises(BadArchiveError, match="truncated"):
        read(packed[: len(packed) // 2])


def test_zeros_behind_a_gzip_member_are_padding() -> None:
    assert read(gzip.compress(tar([Member("a")])) + bytes(512)) == [("a", Kind.FILE, b"")]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress, bz2.compress])
def test_decompression_bomb_stops_at_the_limit(compress: "object") -> None:
    bomb = compress(tar([Member("zeros", bytes(64 << 20))]))  # type: ignore[operator]
    assert len(bomb) < 100_000
    with pytest.raises(LimitExceededError, match="1,048,576 bytes after decompression"):
        read(bomb)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (Member("../etc/passwd"), "path traversal"),
        (Member("a/../../b"), "path traversal"),
        (Member("/../a"), "path traversal"),
        (Member("a" * 256), "longer than 255 bytes"),
        (Member("a/" * 2000 + "b"), "longer than 3072 bytes"),
        (Member("s", pax={"GNU.sparse.major": "1"}), "sparse"),
        (Member("s", type=b"S"), "not supported"),
        (Member("s", type=b"V"), "not supported"),
        (Member("l", type=tarfile.SYMTYPE), "target of link"),
        (Member("x", pax={"SCHILY.xattr.user.a": "b" * 5000}), "extended header is larger"),
        (Member("d", type=tarfile.CHRTYPE, device=(0o7777777, 0)), "device"),
        (Member("o", pax={"uid": "99999999999"}), "32 bits"),
        (Member("o", pax={"uid": "-1"}), "no number"),
        (Member("t", pax={"mtime": "yesterday"}), "no time"),
        (Member("t", pax={"path": "a\0b"}), "NUL"),
    ],
)
def test_bad_entries(member: Member, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read(tar([member]))


def test_absolute_paths_are_inside_the_image() -> None:
    assert read(tar([Member("/etc/passwd"), Member("./a/./b")])) == [
        ("etc/passwd", Kind.FILE, b""),
        ("a/b", Kind.FILE, b""),
    ]


def test_truncation_is_noticed_everywhere() -> None:
    content = tar([Member("a", b"x" * 600), Member("b", b"y")])
    ends = content.rindex(b"y") + 1
    for length in range(0, ends, 97):
        with pytest.raises(BadArchiveError, match="truncated"):
            read(content[:length])


def test_limits_on_entries_and_devices() -> None:
    with pytest.raises(LimitExceededError, match="1,000 entries"):
        read(tar(Member(str(number)) for number in range(1001)), Limits(max_inodes=1000))
    devices = [Member(f"d{n}", type=tarfile.BLKTYPE, device=(8, n)) for n in range(5)]
    with pytest.raises(LimitExceededError, match="4 device nodes"):
        read(tar(devices))


def test_many_extended_headers_are_bounded_together() -> None:
    header = tar([Member("x", pax={"comment": "c" * 3000})])[: 512 + 3072]
    with pytest.raises(LimitExceededError, match="extended header"):
        read(header * 2 + tar([Member("x")]))

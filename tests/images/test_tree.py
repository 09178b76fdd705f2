"""Layers over layers: whiteouts, links, owners, times; and entries that must not get out."""

import stat
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.images.archives import Member, directory, hardlink, symlink, tar
from tests.images.conftest import AddTar, listing
from torpor.images.erofs import ErofsReader
from torpor.images.errors import BadArchiveError, ImageError, LimitExceededError
from torpor.images.limits import Budget, Limits
from torpor.images.store import ImageStore
from torpor.images.tar import Entry, Kind
from torpor.images.tree import Tree


def test_whiteouts_hide_lower_layers_only(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(
        tar([Member("keep", b"1"), Member("gone", b"1"), directory("d"), Member("d/old", b"1"),
             directory("e"), Member("e/old", b"1"), directory("f"), Member("f/old", b"1")]),
        tar([Member(".wh.gone"), Member("d/new", b"2"), Member("d/.wh..wh..opq"),
             Member(".wh.e"), directory("e"), Member("e/new", b"2"), Member("f/own", b"2"),
             Member(".wh.f"), Member(".wh..wh.plnk")]),
    )  # fmt: skip
    assert listing(store, digest) == {
        "keep": b"1", "d": b"/", "d/new": b"2", "e": b"/", "e/new": b"2", "f": b"/", "f/own": b"2",
    }  # fmt: skip


def test_whiteout_beside_a_hard_link_of_its_name(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(
        tar([Member("a", b"old"), Member("b", b"b")]),
        tar([Member(".wh.a"), hardlink("a", "b")]),
    )
    assert listing(store, digest) == {"a": b"b", "b": b"b"}


def test_a_plain_archive_has_no_whiteouts(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(tar([Member(".wh.x", b"1"), Member("x", b"2")]), whiteouts=False)
    assert listing(store, digest) == {".wh.x": b"1", "x": b"2"}


def test_kinds_replace_each_other_between_layers(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(
        tar([directory("a"), Member("a/x"), Member("b"), symlink("c", "b"), directory("d", 0o700)]),
        tar([Member("a", b"file"), directory("b"), Member("c", b"file"), directory("d", 0o755)]),
    )
    assert listing(store, digest) == {"a": b"file", "b": b"/", "c": b"file", "d": b"/"}


def test_entries_below_links_stay_inside(
    store: ImageStore, add_layers: AddTar, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    digest = add_layers(
        tar([directory("usr"), directory("usr/lib"), symlink("lib", "usr/lib"),
             symlink("up", "../../../../../../tmp"), symlink("abs", str(outside)),
             symlink("self", "self")]),
        tar([Member("lib/so", b"1"), Member("up/x", b"2"), Member("abs/y", b"3")]),
    )  # fmt: skip
    found = listing(store, digest)
    assert found["usr/lib/so"] == b"1"
    assert found["tmp/x"] == b"2"
    assert found[f"{outside}/y".lstrip("/")] == b"3"
    assert not list(outside.iterdir())
    with pytest.raises(BadArchiveError, match="more than 40 links"):
        add_layers(tar([symlink("self", "self"), Member("self/x")]))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([Member("a"), Member("a")], "appears twice"),
        ([Member("a"), directory("a")], "appears twice"),
        ([directory("a"), Member("a/b"), Member("a")], "appears twice"),
        ([Member("a/b"), symlink("a", "/")], "appears twice"),
        ([Member(".wh.a"), Member(".wh.a")], "appears twice"),
        ([Member("a"), Member("a/b")], "yet entries lie below it"),
        ([hardlink("a", "nothing")], "does not exist"),
        ([hardlink("a", "../../etc/passwd")], "path traversal"),
        ([directory("d"), hardlink("a", "d")], "hard link to directory"),
        ([Member(".wh...")], "hides no name"),
        ([Member("d/.wh.")], "hides no name"),
        ([Member(".wh.d/a")], "a whiteout can't be a directory"),
        ([symlink("l", ".wh.d"), Member("l/a")], "a whiteout can't be a directory"),
        ([Member(".", type=tarfile.SYMTYPE, link="/")], "the root is"),
    ],
)
def test_contradictions_are_refused(
    add_layers: AddTar, store: ImageStore, members: list[Member], message: str
) -> None:
    with pytest.raises(BadArchiveError, match=message):
        add_layers(tar(members))
    assert store.images() == []


def test_absolute_hard_link_is_inside_the_image(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(tar([Member("etc/passwd", b"image's"), hardlink("p", "/etc/passwd")]))
    assert listing(store, digest)["p"] == b"image's"


def test_everything_about_a_file_is_kept(store: ImageStore, add_layers: AddTar) -> None:
    capability = b"\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    digest = add_layers(
        tar([
            Member("program", b"x", mode=0o4755, uid=1000, gid=70_000,
                   pax={"SCHILY.xattr.security.capability": capability.decode("latin-1"),
                        "SCHILY.xattr.user.note": "ä", "mtime": "1234567890.987654321"}),
            hardlink("same", "program"),
            symlink("link", "/abs/../olute"),
            Member("null", type=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
            Member("big", type=tarfile.BLKTYPE, device=(259, 70_000), mode=0o660),
            Member("pipe", type=tarfile.FIFOTYPE, mode=0o600),
            Member("before-1970", pax={"mtime": "-5.25"}),
            Member("large", bytes(range(256)) * 500),
            Member("empty"),
        ])
    )  # fmt: skip
    inodes = {}
    with ErofsReader(store.resolve(digest).erofs) as reader:
        for path, inode in reader.walk():
            inodes[b"/".join(path).decode()] = inode
        assert b"".join(reader.data(inodes["large"])) == bytes(range(256)) * 500
        assert b"".join(reader.data(inodes["link"])) == b"/abs/../olute"
    program = inodes["program"]
    assert (program.mode, program.uid, program.gid) == (stat.S_IFREG | 0o4755, 1000, 70_000)
    assert program.mtime_ns == 1234567890_987654321
    assert program.xattrs[b"user.note"] == "ä".encode()
    assert program.xattrs[b"security.capability"] == capability
    assert (inodes["same"].nid, program.links) == (program.nid, 2)
    assert (inodes["null"].device, inodes["big"].device) == ((1, 3), (259, 70_000))
    assert stat.S_ISFIFO(inodes["pipe"].mode)
    assert inodes["before-1970"].mtime_ns == -5_250_000_000
    assert inodes["empty"].mtime_ns == 10**18


def test_no_data_of_a_regular_file_is_inlined(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(tar([Member(str(size), b"x" * size) for size in (1, 100, 4095, 4097)]))
    with ErofsReader(store.resolve(digest).erofs) as reader:
        layouts = {inode.layout for _, inode in reader.walk() if stat.S_ISREG(inode.mode)}
    assert layouts == {0}


def test_equal_input_makes_equal_images(add_layers: AddTar) -> None:
    layer = tar([Member(f"d{n % 7}/f{n}", str(n).encode() * n) for n in range(200)])
    assert add_layers(layer) == add_layers(layer)


def test_limits_hold_over_all_layers_together(add_layers: AddTar) -> None:
    layers = [tar([Member(f"f{n}", bytes(40_000))]) for n in range(3)]
    with pytest.raises(LimitExceededError, match="100,000 bytes"):
        add_layers(*layers, limits=Limits(max_bytes=100_000))
    with pytest.raises(BadArchiveError, match="more than 2 layers"):
        add_layers(*layers, limits=Limits(max_layers=2))
    with pytest.raises(LimitExceededError, match="50 entries"):
        add_layers(tar([Member("/".join("d" * 60))]), limits=Limits(max_inodes=50))


parts = st.sampled_from([b"a", b"b", b"c", b".wh.a", b".wh.b", b".wh..wh..opq"])
entries = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(list(Kind)),
        st.lists(parts, min_size=1, max_size=4).map(tuple),
        st.sampled_from([b"a", b"b", b"/a/b", b"../..", b"a/c", b"."]),
    ),
    max_size=25,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(entries)
def test_any_layers_make_a_tree_or_an_error(
    tmp_path_factory: pytest.TempPathFactory,
    found: list[tuple[int, Kind, tuple[bytes, ...], bytes]],
) -> None:
    """Whatever comes, the tree stays a tree, and the spool has the contents of its files alone."""
    spool = tmp_path_factory.mktemp("spool")
    tree = Tree(spool, Budget(Limits()))
    for layer, kind, path, target in sorted(found, key=lambda item: item[0]):
        entry = Entry(kind, path, 0o755, 0, 0, 0, link_target=target)
        if kind is Kind.FILE:
            entry.size_bytes = 3
        with suppress(ImageError):
            tree.apply(entry, iter([b"abc"]), layer, "test", whiteouts=True)
    names: dict[int, int] = {}
    contents = set()
    todo = [tree.root]
    while todo:
        node = todo.pop()
        for name, child in node.children.items():
            assert name not in (b"", b".", b"..")
            assert not name.startswith(b".wh.")
            names[id(child)] = names.get(id(child), 0) + 1
            assert child.kind is not Kind.DIRECTORY or names[id(child)] == 1
            assert names[id(child)] <= child.links
            if child.content >= 0:
                contents.add(str(child.content))
            todo.append(child)
    assert {path.name for path in spool.iterdir()} == contents

"""The cache of packed directories: every change is noticed, nothing half-made is ever seen."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from torpor import rootdirs
from torpor.errors import PackError
from torpor.images.erofs import ErofsReader
from torpor.rootdirs import fingerprint_directory, packed_root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "file").write_text("content")
    (root / "sub" / "other").write_text("other")
    (root / "link").symlink_to("file")
    return root


def rewrite_keeping_size_and_times(root: Path) -> None:
    status = (root / "file").stat()
    (root / "file").write_text("CONTENT")
    os.utime(root / "file", ns=(status.st_atime_ns, status.st_mtime_ns))


def swap_names(root: Path) -> None:
    (root / "file").rename(root / "x")
    (root / "sub" / "other").rename(root / "file")
    (root / "x").rename(root / "sub" / "other")


def point_link_elsewhere(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("sub")


CHANGES: list[Callable[[Path], object]] = [
    lambda root: (root / "file").write_text("changed!"),
    rewrite_keeping_size_and_times,
    swap_names,
    lambda root: (root / "sub" / "new").touch(),
    lambda root: (root / "sub" / "other").unlink(),
    lambda root: (root / "sub" / "empty").rmdir(),
    lambda root: (root / "file").rename(root / "file2"),
    lambda root: (root / "file").chmod(0o755),
    point_link_elsewhere,
    lambda root: os.link(root / "file", root / "sub" / "hard"),
    lambda root: os.setxattr(root / "file", "user.x", b"1"),
    lambda root: os.truncate(root / "file", 3),
    lambda root: os.utime(root / "sub"),
    lambda root: os.mkfifo(root / "fifo"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(tree: Path, change: Callable[[Path], object]) -> None:
    before = rootdirs._settled_fingerprint(tree)
    assert rootdirs._settled_fingerprint(tree) == before
    change(tree)
    assert rootdirs._settled_fingerprint(tree) != before


def test_changes_within_one_clock_tick_are_noticed(tree: Path) -> None:
    """Same size, same inode, moments later: only the wait for the clock tells these apart."""
    seen = set()
    for number in range(10):
        (tree / "file").write_text(f"{number}")
        seen.add(rootdirs._settled_fingerprint(tree))
    assert len(seen) == 10


def test_packed_once_and_again_after_a_change(tree: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = packed_root(tree, data)
    made = first.stat()
    again = packed_root(tree, data)
    assert (again, again.stat().st_ino) == (first, made.st_ino)
    (tree / "file").write_text("changed")
    assert packed_root(tree, data) != first
    assert subprocess.run(["fsck.erofs", first], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("date_s", [-0x7FFF_FFFF, -86_400, -3, 0, 4_102_444_801, 0x3_7FFF_FFFE])
def test_dates_are_kept_whatever_they_are(tree: Path, tmp_path: Path, date_s: int) -> None:
    time_ns = date_s * 1_000_000_000 + 250_000_000
    for path in (tree / "file", tree / "sub"):
        os.utime(path, ns=(time_ns, time_ns))
    with ErofsReader(packed_root(tree, tmp_path / "data")) as reader:
        found = {path: inode.mtime_ns for path, inode in reader.walk()}
    assert found[(b"file",)] == (tree / "file").stat().st_mtime_ns == time_ns
    assert found[(b"sub",)] == time_ns


def test_equal_content_is_one_image(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same")
        for path in (tmp_path / name / "file", tmp_path / name):
            os.utime(path, ns=(10**18, 10**18 + 5))
    assert packed_root(tmp_path / "a", tmp_path / "d") == packed_root(
        tmp_path / "b", tmp_path / "d"
    )


def test_file_times_owners_and_modes_are_kept(tree: Path, tmp_path: Path) -> None:
    (tree / "file").chmod(0o4751)
    os.utime(tree / "file", ns=(0, 1577934245_678000000))
    image = packed_root(tree, tmp_path / "data")
    # fsck.erofs drops the set-user-ID bit on extraction (chown follows chmod): look for the inode.
    assert (0o104751).to_bytes(2, "little") in image.read_bytes()
    out = tmp_path / "out"
    subprocess.run(
        ["fsck.erofs", f"--extract={out}", "--preserve", image], check=True, capture_output=True
    )
    assert (out / "file").stat().st_mode & 0o777 == 0o751
    assert (out / "file").stat().st_mtime_ns == 1577934245_678000000


def test_times_of_a_change_while_packing(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that changes under mkfs.erofs is packed again, and refused if it goes on."""
    from torpor import erofs

    real, calls = erofs.make_erofs, 0

    def restless(directory: Path, image: Path) -> None:
        nonlocal calls
        calls += 1
        real(directory, image)
        (tree / "file").write_text(f"{calls}")

    monkeypatch.setattr(erofs, "make_erofs", restless)
    with pytest.raises(PackError, match="changed while it was packed"):
        packed_root(tree, tmp_path / "data")
    assert calls == 3
    assert not list((tmp_path / "data/cache/rootdirs/tmp").iterdir())
    assert not list((tmp_path / "data/cache/rootdirs/images").iterdir())


def test_a_killed_run_leaves_nothing_half_made(tree: Path, tmp_path: Path) -> None:
    (tree / "big").write_bytes(os.urandom(32 << 20))
    data = tmp_path / "data"
    script = (
        "import sys; from pathlib import Path; from torpor.rootdirs import packed_root\n"
        "packed_root(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    temporary = data / "cache" / "rootdirs" / "tmp"
    process = subprocess.Popen([sys.executable, "-c", script, tree, data])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (temporary.exists() and any(temporary.iterdir())):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not list((data / "cache/rootdirs/images").iterdir())
    image = packed_root(tree, data)
    assert subprocess.run(["fsck.erofs", image], check=False, capture_output=True).returncode == 0
    assert not list(temporary.iterdir())


def test_many_at_once_make_one_image(tree: Path, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(packed_root(tree, tmp_path / "data")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1


def test_old_images_go_and_used_ones_stay(tree: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = packed_root(tree, data)
    (tree / "file").write_text("second")
    second = packed_root(tree, data)
    assert first.exists()  # used within the hour
    for image in (first, second):
        os.utime(image, (1, 1))
    (tmp_path / "other").mkdir()
    packed_root(tmp_path / "other", data)
    assert not first.exists()
    assert second.exists()


def test_unreadable_and_missing_directories(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"cannot read .*missing"):
        packed_root(tmp_path / "missing", tmp_path / "data")


def test_a_mount_point_inside_is_refused() -> None:
    with pytest.raises(PackError, match="lies on another file system"):
        fingerprint_directory(Path("/dev"))

"""The `torpor image` commands as a shell sees them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images.archives import Member, tar
from tests.images.conftest import AddTar
from torpor.images.store import ImageStore

COMMAND = (
    sys.executable,
    "-c",
    "import sys; from torpor.cli import main; sys.argv[0] = 'torpor'; sys.exit(main())",
)


def torpor(store: ImageStore, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, "--data", str(store.data_dir), *words],
        capture_output=True, text=True, env={**os.environ, **env}, check=False,
    )  # fmt: skip


def test_an_error_of_the_system_is_one_line(store: ImageStore, add_layers: AddTar) -> None:
    add_layers(tar([Member("a")]), tag="app")
    done = torpor(store, "image", "export", "--format", "rootfs", "app", "/proc/app.tar")
    assert done.returncode == 125
    assert done.stderr.splitlines()[-1].startswith("torpor: /proc/.app.tar.partial: ")
    assert "Traceback" not in done.stderr


def test_nobody_reads_the_list(store: ImageStore, add_layers: AddTar) -> None:
    add_layers(tar([Member("a")]), tag="app")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:  # noqa: PTH123 -- a descriptor
        done = subprocess.run(
            [*COMMAND, "--data", str(store.data_dir), "image", "list"],
            stdout=closed, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("image in", ["inspect"]),
        ("image inspect a", ["app:latest", "apple:2"]),
        ("image tag appl", ["apple:2"]),
        ("vm run b", ["bar:1"]),
        ("image inspect zzz", []),
    ],
)
def test_completion_offers_commands_and_names(
    store: ImageStore, add_layers: AddTar, line: str, expected: list[str]
) -> None:
    for name in ("app", "apple:2", "bar:1"):
        add_layers(tar([Member("a")]), tag=name)
    typed = f"torpor --data {store.data_dir} {line}"
    done = torpor(
        store,
        _TORPOR_COMPLETE="bash_complete",
        COMP_WORDS=typed,
        COMP_CWORD=str(len(typed.split()) - 1),
    )
    assert done.stdout.split() == [f"plain,{word}" for word in expected]


def test_completion_changes_nothing(tmp_path: Path) -> None:
    data = tmp_path / "none"
    typed = f"torpor --data {data} image inspect x"
    done = torpor(
        ImageStore(data), _TORPOR_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD="5"
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert not data.exists()

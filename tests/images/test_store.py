"""The store: names, sharing, users, collection, and what a crash leaves."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.images.archives import Member, tar
from tests.images.conftest import AddTar, listing
from torpor.errors import ImageNotFoundError
from torpor.images import resolve
from torpor.images.config import Healthcheck, ImageConfig, parse_config
from torpor.images.errors import BadArchiveError, ImageError
from torpor.images.names import parse_reference
from torpor.images.store import ImageStore

LAYER = tar([Member("file", b"content")])


def test_resolve_by_every_name(store: ImageStore, add_layers: AddTar) -> None:
    config = ImageConfig(  # noqa: S604 -- no subprocess
        entrypoint=("/e",), cmd=("c",), env=("A=b=c",), workdir="/w", user="1:2",
        exposed_ports=("80/tcp",), stop_signal="SIGINT", labels={"k": "v"},
        healthcheck=Healthcheck(("CMD", "true"), interval_ns=5), volumes=("/v",), shell=("/s",),
    )  # fmt: skip
    digest = add_layers(LAYER, tag="app", config=config)
    for name in ("app", "app:latest", "docker.io/library/app:latest", digest, digest[7:19]):
        found = resolve(name, store.data_dir)
        assert (found.digest, found.name, found.config) == (digest, name, config)
        assert found.erofs.stat().st_size == found.size_bytes
    assert config.argv() == ["/e", "c"]
    assert config.argv(["x"]) == ["/e", "x"]


@pytest.mark.parametrize("name", ["nothing", "sha256:" + "0" * 64, "abcdef123456", "x/y:1"])
def test_unknown_names(store: ImageStore, name: str) -> None:
    with pytest.raises(ImageNotFoundError, match=name):
        store.resolve(name)


def test_same_files_with_another_command_share_one_file(
    store: ImageStore, add_layers: AddTar
) -> None:
    one = add_layers(LAYER, tag="one", config=ImageConfig(cmd=("1",)))
    two = add_layers(LAYER, tag="two", config=ImageConfig(cmd=("2",)))
    assert one != two
    assert store.resolve("one").erofs.samefile(store.resolve("two").erofs)
    shared = store.inspect("one")
    assert shared.shared_bytes == shared.size_bytes
    assert store.remove("one") == (["one:latest"], [one])
    assert listing(store, "two") == {"file": b"content"}
    assert store.inspect("two").shared_bytes == 0


def test_a_name_moves_and_the_old_image_is_collected(store: ImageStore, add_layers: AddTar) -> None:
    old = add_layers(LAYER, tag="app")
    new = add_layers(tar([Member("other")]), tag="app")
    assert store.resolve("app").digest == new
    deleted, freed_bytes = store.prune()
    assert deleted == [old]
    assert freed_bytes > 0
    assert [image.digest for image in store.images()] == [new]
    assert store.prune() == ([], 0)


def test_a_name_like_a_digest_is_a_name(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(LAYER, tag="app")
    for name in (digest[7:8], digest[7:17]):
        store.tag(digest, parse_reference(name))
        assert store.remove(name) == ([f"{name}:latest"], [])
    assert store.remove(digest[7:17]) == (["app:latest"], [digest])


def test_nothing_in_use_is_collected(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(LAYER, tag="app")
    store.refer("snapshot", "3f/1", digest)
    assert store.remove("app") == (["app:latest"], [])
    assert store.inspect(digest).users == ("snapshot/3f/1",)
    assert store.prune(tagged=True) == ([], 0)
    store.release("snapshot", "3f/1")

    descriptor = store.hold(store.resolve(digest))
    assert store.inspect(digest).running
    assert store.prune(tagged=True) == ([], 0)
    duplicate = os.dup(descriptor)
    os.close(descriptor)
    assert store.prune() == ([], 0)
    os.close(duplicate)
    assert store.prune()[0] == [digest]


def test_a_deleted_image_stays_while_mapped(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(LAYER)
    image = store.resolve(digest)
    with image.erofs.open("rb") as mapped:
        before = mapped.read()
        assert store.prune()[0] == [digest]
        mapped.seek(0)
        assert mapped.read() == before
    with pytest.raises(ImageNotFoundError, match="removed meanwhile"):
        store.hold(image)


def test_prune_all_takes_what_only_has_a_name(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(LAYER, tag="app")
    assert store.prune() == ([], 0)
    assert store.prune(tagged=True)[0] == [digest]
    assert store.find("app") is None


def test_a_damaged_description_is_refused(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(LAYER, tag="app")
    path = store.resolve("app").erofs.with_suffix(".json")
    document = json.loads(path.read_text())
    document["image"]["config"]["Cmd"] = ["/bin/evil"]
    path.write_text(json.dumps(document))
    with pytest.raises(ImageError, match=f"{digest}.*damaged"):
        store.resolve("app")
    path.write_text("{")
    with pytest.raises(ImageError, match="damaged"):
        store.resolve(digest)


@pytest.mark.parametrize(
    "raw",
    [
        {"Cmd": "sh"}, {"Env": ["A"]}, {"Env": [1]}, {"ExposedPorts": ["80"]}, {"Labels": {"a": 1}},
        {"Healthcheck": {"Interval": "5s"}}, {"User": 0.5}, [], "x",
        {"Cmd": ["a\0b"]}, {"Entrypoint": ["\ud800"]}, {"User": "a\0"}, {"Env": ["=x"]},
    ],
)  # fmt: skip
def test_wrong_configurations(raw: object) -> None:
    with pytest.raises(BadArchiveError, match="image x"):
        parse_config(raw, "image x")


def test_what_a_killed_process_leaves_is_swept(store: ImageStore) -> None:
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from torpor.images.store import ImageStore
        with ImageStore(Path(sys.argv[1])).staging() as staging:
            (staging / "half").write_bytes(b"x" * 1000)
            print(staging, flush=True)
            time.sleep(60)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(store.data_dir)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        leftover = Path(process.stdout.readline().strip())
        with store.staging():
            assert (leftover / "half").exists(), "somebody else's work was swept"
        process.send_signal(signal.SIGKILL)
    assert leftover.exists()
    with store.staging():
        assert not leftover.exists()


def test_stagings_that_begin_at_the_same_time_do_not_sweep_each_other(store: ImageStore) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from torpor.images.store import ImageStore
        store = ImageStore(Path(sys.argv[1]))
        for _ in range(150):
            with store.staging() as staging:
                (staging / "mine").write_bytes(b"")
        """
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(store.data_dir)]) for _ in range(4)
    ]
    assert [process.wait() for process in processes] == [0] * 4


def test_orphans_of_an_interrupted_add_are_pruned(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(LAYER, tag="app")
    image = store.resolve("app")
    orphan = image.erofs.with_name(f"sha256-{'0' * 64}.erofs")
    orphan.write_bytes(b"x")
    (store.directory / "new-0123").write_bytes(b"x")
    store.prune()
    assert not orphan.exists()
    assert store.resolve("app").digest == digest


def test_concurrent_adds_and_prunes_agree(store: ImageStore, tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from torpor.images.config import ImageConfig
        from torpor.images.convert import Layer, convert
        from torpor.images.limits import Limits
        from torpor.images.names import parse_reference
        from torpor.images.store import ImageStore
        store = ImageStore(Path(sys.argv[1]))
        for number in range(6):
            with store.staging() as staging:
                convert(store, staging, [Layer(Path(sys.argv[2]), "l")],
                        ImageConfig(cmd=(str(number),)), limits=Limits(),
                        tag=parse_reference(f"{sys.argv[3]}-{number}"))
            store.prune()
        """
    )
    layer = tmp_path / "layer"
    layer.write_bytes(LAYER)
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(store.data_dir), str(layer), name])
        for name in ("a", "b", "c")
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    images = store.images()
    assert len(images) == 6
    assert sorted(tag for image in images for tag in image.tags) == sorted(
        f"{name}-{number}:latest" for name in "abc" for number in range(6)
    )
    assert len({image.digest for image in images}) == 6
    assert len({store.resolve(image.digest).erofs.stat().st_ino for image in images}) == 1


def test_names_with_a_slash_are_one_file(store: ImageStore, add_layers: AddTar) -> None:
    digest = add_layers(LAYER, tag="localhost:5000/a/b:1")
    assert store.inspect("localhost:5000/a/b:1").tags == ("localhost:5000/a/b:1",)
    with pytest.raises(ImageError, match="digest can't be given"):
        store.tag(digest, parse_reference(f"a@{digest}"))

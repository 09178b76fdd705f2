"""Stored images in microVMs: sample applications as servers, configurations as docker has them."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, TORPOR, Result, run_command
from tests.images.checks import CHECKS
from tests.images.running import in_vm
from tests.images.standins import BASES, add_bases
from torpor.images.build import Builder, BuildOptions
from torpor.images.names import parse_reference
from torpor.images.settings import ImageSettings
from torpor.images.store import ImageStore
from torpor.images.transports import ANONYMOUS

pytestmark = pytest.mark.kvm

DOCKERFILE = """\
FROM busybox:1
RUN echo mine > /etc/mine && chmod 600 /etc/mine && chown 1000 /etc/mine \\
 && echo root > /etc/roots && chmod 600 /etc/roots \\
 && mkdir /s && cp /usr/bin/busybox /s/id && chmod 4755 /s/id \\
 && ln /etc/mine /etc/hard && ln -s ../etc/mine /etc/soft \\
 && mknod /zero c 1 5 && mkfifo /fifo && touch -d @1234567890 /old
ENV GREETING=hello EMPTY=
WORKDIR /made/by/workdir
USER app
ENTRYPOINT ["sh", "-c", "echo $GREETING-$EMPTY $HOME $(pwd) $(id -u):$(id -g) $*", "zero"]
CMD ["one", "two words"]
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """Base images, and the image `configured` of DOCKERFILE."""
    directory = tmp_path_factory.mktemp("images")
    store = ImageStore(directory / "data")
    add_bases(store, directory, BASES)
    context = directory / "context"
    context.mkdir()
    build(store, context, "configured", DOCKERFILE)
    return store


def build(store: ImageStore, directory: Path, name: str, text: str = "") -> str:
    builder = Builder(store, ImageSettings(), ANONYMOUS, lambda _: None)
    tags = (parse_reference(name),)
    return builder.build(BuildOptions(directory, dockerfile_text=text, tags=tags))


def torpor(store: ImageStore, *words: str) -> Result:
    return run_command([TORPOR, "--data", store.data_dir, *words])


def vm(store: ImageStore, *words: str) -> str:
    result = torpor(store, "vm", "run", *words)
    assert (result.status, result.stderr) == (0, b""), result
    return result.stdout.decode()


@pytest.mark.parametrize("name", ["bun-counter", "bun-chat", "php"])
def test_sample_applications(store: ImageStore, name: str) -> None:
    build(store, REPOSITORY / "examples" / name, name)
    with in_vm(store.data_dir, name) as server:
        CHECKS[name](server)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["configured"], "hello- /home/app /made/by/workdir 1000:1000 one two words\n"),
        (["configured", "x"], "hello- /home/app /made/by/workdir 1000:1000 x\n"),
        (["--entrypoint", "echo", "configured"], "\n"),
        (["--entrypoint", "echo", "configured", "x"], "x\n"),
        (["--entrypoint", "", "configured", "pwd"], "/made/by/workdir\n"),
        (
            ["-e", "GREETING=bye", "-e", "EMPTY=x", "-w", "/etc", "-u", "0", "configured"],
            "bye-x /root /etc 0:0 one two words\n",
        ),
        (["-u", "nobody", "-w", "/", "configured", "x"], "hello- /nonexistent / 65534:65534 x\n"),
    ],
)
def test_configuration_is_honoured_as_docker_does(
    store: ImageStore, words: list[str], expected: str
) -> None:
    assert vm(store, *words) == expected


def test_files_are_as_the_dockerfile_made_them(store: ImageStore) -> None:
    paths = ["/etc/mine", "/etc/hard", "/s/id", "/zero", "/fifo", "/old", "/made/by/workdir"]
    found = vm(store, "--entrypoint", "stat", "configured", "-c", "%n %F %a %u:%g %h", *paths)
    assert found.splitlines() == [
        "/etc/mine regular file 600 1000:0 2",
        "/etc/hard regular file 600 1000:0 2",
        "/s/id regular file 4755 0:0 1",
        "/zero character special file 644 0:0 1",
        "/fifo fifo 644 0:0 1",
        "/old regular empty file 644 0:0 1",
        "/made/by/workdir directory 755 0:0 2",
    ]
    script = "cat /etc/soft; stat -c %Y /old; head -c 3 /zero | od -An -tx1"
    found = vm(store, "--entrypoint", "sh", "configured", "-c", script)
    assert found.split() == ["mine", "1234567890", "00", "00", "00"]
    result = torpor(store, "vm", "run", "--entrypoint", "cat", "configured", "/etc/roots")
    assert result.status == 1
    assert b"Permission denied" in result.stderr


def test_an_image_is_kept_while_a_vm_runs(store: ImageStore, tmp_path: Path) -> None:
    digest = build(store, tmp_path, "used", "FROM busybox:1\nRUN echo used > /used\n")
    command: list[str | Path] = [TORPOR, "--data", store.data_dir, "vm", "run", "-i", "used"]
    command += ["cat", "-", "/used"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        assert json.loads(torpor(store, "image", "inspect", "used").stdout)[0]["running"]
        removed = torpor(store, "image", "rm", "used")
        assert removed.stdout == b"untagged used:latest\n"
        assert b"stays: used by a running VM" in removed.stderr
        assert digest.encode() not in torpor(store, "image", "prune").stdout
        process.stdin.close()
        assert process.stdout.read() == b"used\n"
        assert process.wait() == 0
    assert f"deleted {digest}".encode() in torpor(store, "image", "prune").stdout

"""Builds with buildah, on a base image of busybox alone; and the commands over it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import small_disk
from tests.images.archives import Member, directory, symlink, tar
from tests.images.conftest import AddTar, listing
from torpor.cli.commands import run
from torpor.errors import TorporError
from torpor.images.build import Builder, BuildOptions, build_args_from
from torpor.images.config import ImageConfig
from torpor.images.convert import Layer, convert
from torpor.images.errors import BuildError, ImageError, RegistryUnreachableError, ToolMissingError
from torpor.images.names import parse_reference
from torpor.images.settings import ImageSettings
from torpor.images.store import ImageStore
from torpor.images.transports import ANONYMOUS

Build = Callable[..., str]
COMMANDS = (
    "sh",
    "cat",
    "echo",
    "env",
    "ls",
    "mkdir",
    "rm",
    "sleep",
    "touch",
    "false",
    "mktemp",
    "chmod",
)

BASE_CONFIG = ImageConfig(env=("PATH=/bin", "FROM_BASE=yes"), cmd=("sh",), workdir="/tmp")


@pytest.fixture
def base(add_layers: AddTar) -> str:
    """The image `base:1`: busybox and a file."""
    return add_layers(tar(base_members()), tag="base:1", config=BASE_CONFIG)


def base_members() -> list[Member]:
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    members = [
        directory("bin"),
        directory("tmp", 0o1777),
        Member("bin/busybox", busybox, mode=0o755),
    ]
    members += [symlink(f"bin/{name}", "busybox") for name in COMMANDS]
    return [*members, Member("of-base", b"base")]


@pytest.fixture
def build(store: ImageStore, base: str, tmp_path: Path) -> Build:
    """Builds a Dockerfile, with files beside it, and returns the image's digest."""
    assert base

    def build(
        dockerfile: str, files: dict[str, str] | None = None, tag: str = "app", **options: object
    ) -> str:
        context = tmp_path / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(textwrap.dedent(dockerfile))
        for name, content in (files or {}).items():
            (context / name).write_text(content)
        builder = Builder(store, ImageSettings(stall_s=10), ANONYMOUS, lines.append)
        return builder.build(
            BuildOptions(context, tags=(parse_reference(tag),), **options)  # type: ignore[arg-type]
        )

    lines: list[str] = []
    build.lines = lines  # type: ignore[attr-defined]
    return build


DOCKERFILE = """\
    ARG VERSION=1
    FROM base:${VERSION} AS first
    ARG GREETING=hello
    RUN echo $GREETING > /greeting && rm /of-base
    RUN <<EOF
    echo "here" > /heredoc
    EOF
    FROM base:1
    COPY --from=first /greeting /heredoc /from-first/
    COPY --link file *.txt /files/
    COPY <<'X' /document
    $HOME stays
    X
    RUN mkdir /opaque && touch /opaque/a && chmod 4755 /document
    RUN rm -rf /opaque && mkdir /opaque && touch /opaque/b
    ENV A=1 B="two words"
    USER 1000:1000
    WORKDIR /files
    EXPOSE 8080 53/udp
    VOLUME /data
    STOPSIGNAL SIGINT
    LABEL who="me"
    HEALTHCHECK --interval=5s --retries=2 CMD ["true"]
    ENTRYPOINT ["/bin/echo"]
    CMD ["a", \\
         # with a comment
         "b"]
    """


def test_home_is_that_of_the_user(store: ImageStore, build: Build) -> None:
    build("""\
        FROM base:1
        RUN echo $HOME > /tmp/unlisted
        COPY passwd /etc/
        RUN echo $HOME > /tmp/root
        USER app
        RUN echo $HOME > /tmp/app
        USER 4321
        RUN echo $HOME > /tmp/number
        ENV HOME=/given
        RUN echo $HOME > /tmp/given
        """, {"passwd": "root:x:0:0::/root:/bin/sh\napp:x:7:7::/home/app:/bin/sh\n"})  # fmt: skip
    found = listing(store, "app")
    homes = {
        name: found[f"tmp/{name}"].decode().strip()
        for name in ("unlisted", "root", "app", "number", "given")
    }
    assert homes == {
        "unlisted": "/", "root": "/root", "app": "/home/app", "number": "/", "given": "/given"
    }  # fmt: skip


def test_a_dockerfile_becomes_an_image(store: ImageStore, build: Build) -> None:
    files = {"file": "1", "a.txt": "a", "b.log": "b"}
    digest = build(DOCKERFILE, files, build_args={"GREETING": "hi"})
    found = listing(store, "app")
    assert found["from-first/greeting"] == b"hi\n"
    assert found["from-first/heredoc"] == b"here\n"
    assert found["files/a.txt"] == b"a"
    assert "files/b.log" not in found
    assert found["document"] == b"$HOME stays\n"
    assert found["of-base"] == b"base"
    assert {name for name in found if name.startswith("opaque")} == {"opaque", "opaque/b"}
    assert not [name for name in found if "torpor" in name]
    config = store.resolve("app").config
    assert config.env == ("PATH=/bin", "FROM_BASE=yes", "A=1", "B=two words")
    assert (config.entrypoint, config.cmd) == (("/bin/echo",), ("a", "b"))
    assert (config.user, config.workdir) == ("1000:1000", "/files")
    assert (config.exposed_ports, config.main_port) == (("53/udp", "8080/tcp"), 8080)
    assert (config.stop_signal, config.labels, config.volumes) == (
        "SIGINT",
        {"who": "me"},
        ("/data",),
    )
    assert config.healthcheck is not None
    assert (config.healthcheck.test, config.healthcheck.retries) == (("CMD", "true"), 2)

    assert build(DOCKERFILE, files, build_args={"GREETING": "hi"}) == digest
    build(DOCKERFILE, files, tag="stage", target="first")
    assert "of-base" not in listing(store, "stage")


def test_variables_in_a_copied_here_document(store: ImageStore, build: Build) -> None:
    build("""\
        ARG VERSION=1
        FROM base:1 AS first
        ENV NAME="two words"
        FROM first
        ARG VERSION
        ARG GIVEN
        COPY <<EOF /document
        $NAME $FROM_BASE ${VERSION}.${GIVEN:-none} "\\$NAME" ${UNSET:-}.
        EOF
        """, build_args={"GIVEN": "3"})  # fmt: skip
    assert listing(store, "app")["document"] == b'two words yes 1.3 "$NAME" .\n'


OFFLINE_DOCKERFILE = """\
    FROM base:1 AS tools
    RUN echo tool > /tool && cat /proc/net/dev > /net-before
    FROM base:1 AS app
    ARG GREETING=hello
    ONBUILD RUN touch /triggered
    CMD ["sh"]
    RUN --network=none cat /proc/net/dev /proc/net/fib_trie > /net-none && echo $GREETING > /said
    COPY --from=tools /tool /net-before /
    RUN --network=none --mount=type=bind,from=base:1,target=/m \\
        cat /proc/net/dev /m/of-base > /net-again
    RUN cat /proc/net/dev > /net-after && echo $GREETING >> /said
    ENTRYPOINT ["echo"]
    FROM app
    COPY --from=app /tool /copied
    """


def test_a_step_without_network(store: ImageStore, build: Build) -> None:
    def interfaces(name: str) -> set[str]:
        lines = listing(store, "app")[name].decode().splitlines()
        # Heading, name and colon: proc_pid_net(5).
        return {line.partition(":")[0].strip() for line in lines if line.count(" 0 ") > 3}

    first = build(OFFLINE_DOCKERFILE, build_args={"GREETING": "hi"})
    found = listing(store, "app")
    assert interfaces("net-none") == interfaces("net-again") == {"lo"}
    assert interfaces("net-before") == interfaces("net-after") != {"lo"}
    assert b"127.0.0.1" in found["net-none"], "its loopback interface is not up"
    assert found["net-again"].endswith(b"base")
    assert found["said"] == b"hi\nhi\n"
    assert found["copied"] == b"tool\n"
    assert "triggered" in found
    config = store.resolve("app").config
    assert (config.entrypoint, config.cmd) == (("echo",), ("sh",))
    lines = build.lines  # type: ignore[attr-defined]
    told = [line for line in lines if line.startswith("[")]
    assert sorted(line.split("]")[0] for line in told) == [
        *(f"[stage 1/3 {step}/2" for step in (1, 2)),
        *(f"[stage 2/3 {step}/9" for step in range(1, 10)),
        *(f"[stage 3/3 {step}/2" for step in (1, 2)),
    ]
    assert build(OFFLINE_DOCKERFILE, build_args={"GREETING": "hi"}) == first


def test_triggers_of_a_stored_base_run(store: ImageStore, build: Build) -> None:
    build("FROM base:1\nONBUILD COPY file /triggered\nONBUILD RUN echo x > /ran\n", tag="parent")
    assert store.resolve("parent").config.on_build == ("COPY file /triggered", "RUN echo x > /ran")
    build("FROM parent\nRUN echo y > /own\n", {"file": "1"}, tag="child")
    found = listing(store, "child")
    assert (found["triggered"], found["ran"], found["own"]) == (b"1", b"x\n", b"y\n")
    assert store.resolve("child").config.on_build == ()
    with pytest.raises(BuildError, match=r"Dockerfile:2: RUN: .*exit status 1"):
        build("FROM parent\nRUN false\n")
    with pytest.raises(BuildError, match=r"Dockerfile:1: FROM: .*file"):
        build("FROM parent\nRUN true\n", {".dockerignore": "file\n"})


@pytest.mark.parametrize(
    ("dockerfile", "is_built"),
    [
        ("FROM base:1\nRUN echo > /built\nCMD sh", False),
        ("FROM base:1\nEXPOSE 53/udp", False),
        ("FROM base:1\nEXPOSE 8080\nFROM scratch\nCOPY --from=0 /bin /bin", False),
        ("FROM base:1\nEXPOSE 53/udp 8080", True),
        ("FROM base:1 AS one\nEXPOSE 8080/tcp\nFROM one\nCMD sh", True),
        ("FROM served:1\nCMD sh", True),
    ],
)
def test_what_exposes_no_port_is_not_built(
    build: Build, add_layers: AddTar, dockerfile: str, is_built: bool
) -> None:
    config = replace(BASE_CONFIG, exposed_ports=("8080/tcp",))
    add_layers(tar(base_members()), tag="served:1", config=config)
    if is_built:
        assert build(dockerfile, no_port="none")
        return
    with pytest.raises(BuildError, match=r"^none$"):
        build(dockerfile, no_port="none")


def test_configuration_reaches_run_steps_but_not_the_image(
    store: ImageStore, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    dockerfile = """\
        FROM base:1
        RUN cat $PIP_CONFIG_FILE $NPM_CONFIG_GLOBALCONFIG $GOENV && echo "proxy $http_proxy"
        RUN echo x > /file
        """
    plain = build(dockerfile)
    (home / ".npmrc").write_text(
        "registry=https://npm.example\n//npm.example/:_authToken=secret1\n"
    )
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret2@pip.example/simple")
    monkeypatch.setenv("GOPROXY", "https://secret3@go.example")
    monkeypatch.setenv("http_proxy", "http://secret4@proxy.example:1")
    configured = build(dockerfile, no_cache=True)
    lines = "\n".join(build.lines)  # type: ignore[attr-defined]
    assert configured == plain
    image = store.resolve(configured)
    content = image.erofs.read_bytes() + image.erofs.with_suffix(".json").read_bytes()
    for secret in ("secret1", "secret2", "secret3", "secret4"):
        assert secret in lines
        assert secret.encode() not in content
    assert b"PIP_" not in content
    assert "run/torpor-build" not in listing(store, configured)


BAD_DOCKERFILES = [
    (
        "FROM base:1\nRUN echo a && \\\n  false\nRUN x",
        r"Dockerfile:2: RUN: .*exit status 1\n.*\n>    2 .*\n>    3 ",
    ),
    (
        "FROM base:1\nCOPY missing /",
        r"Dockerfile:2: COPY: .*missing.*\n.*\n>    2 \| COPY missing /",
    ),
    ("FROM base:1\nRUN no-such-command", r"Dockerfile:2: RUN: .*exit status 127"),
    ("FROM base:1\nCOPY --from=nothing:1 / /", r"nothing:1"),
    ("FROM base:1\nBAD x", r"Dockerfile:2: unknown instruction BAD"),
    (
        "FROM base:1\nRUN echo a\nRUN --network=none false",
        r"Dockerfile:3: RUN: .*exit status 1\n.*\n.*\n>    3 ",
    ),
    ("FROM base:1\nRUN --network=none true\nRUN false", r"Dockerfile:3: RUN: .*exit status 1"),
]


@pytest.mark.parametrize(("dockerfile", "message"), BAD_DOCKERFILES)
def test_errors_point_into_the_dockerfile(build: Build, dockerfile: str, message: str) -> None:
    with pytest.raises((BuildError, RegistryUnreachableError), match=message):
        build(dockerfile)


def test_unreachable_registry_without_a_recipe(build: Build) -> None:
    with pytest.raises(RegistryUnreachableError, match=r"127.0.0.1:1/x.*connection refused"):
        build("FROM 127.0.0.1:1/x\n")


def test_buildah_missing(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(
        shutil,
        "which",
        lambda name, path=None: None if name == "buildah" else real(name, path=path),
    )
    with pytest.raises(
        ToolMissingError, match=r"buildah: not installed; `apt-get install buildah`"
    ):
        build("FROM base:1\n")


def test_a_full_disk_during_a_build(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    archive = tmp_path / "base.tar"
    archive.write_bytes(tar(base_members()))
    with small_disk(tmp_path / "small", 32) as data:
        store = ImageStore(data)
        base_tag = parse_reference("base:1")
        settings = ImageSettings()
        with store.staging() as staging:
            layers = [Layer(archive, "base")]
            convert(store, staging, layers, BASE_CONFIG, limits=settings.limits, tag=base_tag)

        def build(step: str) -> str:
            builder = Builder(store, settings, ANONYMOUS, lambda _: None)
            text = f"FROM base:1\nRUN {step}\n"
            return builder.build(BuildOptions(context, dockerfile_text=text))

        with pytest.raises(ImageError, match=f"{data}: no room left on this disk"):
            build("cat /dev/zero > /fill")
        assert [image.tags for image in store.images()] == [("base:1",)]
        assert not list((store.directory / "staging").iterdir())
        assert listing(store, build("echo small > /small"))["small"] == b"small\n"


def test_a_killed_build_leaves_nothing_in_the_way(
    store: ImageStore, build: Build, tmp_path: Path
) -> None:
    build("FROM base:1\nRUN echo 1\n")
    context = tmp_path / "context"
    (context / "Dockerfile").write_text("FROM base:1\nRUN echo started && sleep 987654\n")
    command = "import sys; from torpor.cli import main; sys.argv[0] = 'torpor'; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", command, "--data", str(store.data_dir), "build", str(context)],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip() == "started":
                break
        process.send_signal(signal.SIGKILL)
    deadline_s = time.monotonic() + 60
    while _running("987654"):
        assert time.monotonic() < deadline_s, "the killed build's step goes on"
        time.sleep(0.05)
    digest = build("FROM base:1\nRUN echo 2 > /two\n")
    assert listing(store, digest)["two"] == b"2\n"
    containers = list(
        (store.data_dir / "cache/buildah").glob("*/storage/*-containers/containers.json")
    )
    assert containers
    assert all(json.loads(path.read_text()) == [] for path in containers)
    assert str(store.data_dir) not in Path("/proc/self/mounts").read_text()


def _running(argument: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:1] == [b"sleep"] and argument.encode() in words:
            return True
    return False


def test_build_args_from_the_environment() -> None:
    assert build_args_from(("A=1", "B", "C", "D="), {"B": "2"}) == {"A": "1", "B": "2", "D": ""}
    with pytest.raises(BuildError, match=r"must be NAME=VALUE"):
        build_args_from(("=x",))


def test_commands(
    store: ImageStore, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def torpor(*words: str) -> str:
        assert run(["--data", str(store.data_dir), *words]) == 0
        return capsys.readouterr().out

    context = tmp_path / "site"
    context.mkdir()
    with pytest.raises(TorporError, match=r"neither package\.json"):
        torpor("build", str(context))
    (context / "Dockerfile").write_text("FROM base:1\nRUN echo x > /x\n")
    digest = torpor("build", "-q", "-t", "site:1", str(context)).strip()
    assert store.resolve("site:1").digest == digest
    torpor("image", "tag", "site:1", "other:2")
    table = torpor("image", "list").splitlines()
    assert table[0].split()[:2] == ["NAME", "DIGEST"]
    assert {line.split()[0] for line in table[1:]} == {"base:1", "site:1", "other:2"}
    listed = json.loads(torpor("image", "list", "-o", "json"))
    assert {entry["digest"] for entry in listed} == {base, digest}
    shown = json.loads(torpor("image", "inspect", "other:2"))[0]
    assert shown["names"] == ["other:2", "site:1"]
    assert shown["config"]["Cmd"] == ["sh"]
    target = tmp_path / "site.tar"
    torpor("image", "export", "site:1", str(target))
    assert torpor("image", "rm", "site:1") == "untagged site:1\n"
    assert f"deleted {digest}" in torpor("image", "rm", digest)
    assert torpor("image", "import", str(target), "back").strip() == digest
    torpor("image", "rm", "back")
    assert "freed" in torpor("image", "prune", "--all", "--build-cache")
    assert store.images() == []
    assert not (store.data_dir / "cache/buildah/overlay").exists()
    assert run(["image", "tag"]) == 2
    assert "oven/bun:1" in torpor("base-image", "--list")
    assert os.listdir(store.directory / "refs" / "tag") == []  # noqa: PTH208

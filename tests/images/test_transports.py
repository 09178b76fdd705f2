"""Images in and out, through skopeo and a real registry, and registries that misbehave."""

import base64
import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness import small_disk
from tests.images.archives import ImageFiles, Member, digest, directory, hardlink, symlink, tar
from tests.images.conftest import AddTar, listing
from torpor.images.config import Healthcheck, ImageConfig
from torpor.images.errors import (
    BadArchiveError,
    ImageError,
    LimitExceededError,
    RegistryError,
    RegistryUnreachableError,
    ToolMissingError,
)
from torpor.images.exporting import export_image, push
from torpor.images.importing import FORMATS, import_image, pull
from torpor.images.limits import Limits
from torpor.images.names import parse_reference
from torpor.images.settings import ImageSettings, load_settings
from torpor.images.store import ImageStore
from torpor.images.transports import ANONYMOUS, Access, mirror_configuration

SETTINGS = ImageSettings(stall_s=3.0, limits=Limits(max_bytes=8 << 20))
CONFIG = ImageConfig(
    cmd=("/bin/x",), env=("A=b",), healthcheck=Healthcheck(("CMD", "true"), interval_ns=10**9)
)
FILES = [
    directory("bin"),
    Member("bin/x", b"x" * 5000, mode=0o4755, uid=7, pax={"SCHILY.xattr.user.a": "b"}),
    hardlink("bin/y", "bin/x"),
    symlink("z", "/bin/x"),
    Member("nanoseconds", pax={"mtime": "1234567890.123456789"}),
    Member("before-1970", pax={"mtime": "-1234567890.123456789"}),
]


def quiet(_: str) -> None:
    pass


@contextmanager
def registry(directory: Path, htpasswd: str = "") -> Iterator[str]:
    """Debian's docker-registry on a free port; yields HOST:PORT."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    auth = ""
    if htpasswd:
        (directory / "htpasswd").write_text(htpasswd)
        auth = f"auth: {{htpasswd: {{realm: test, path: {directory / 'htpasswd'}}}}}\n"
    (directory / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'registry'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
    )
    log = (directory / "registry.log").open("wb")
    with (
        log,
        subprocess.Popen(
            ["docker-registry", "serve", str(directory / "config.yml")], stdout=log, stderr=log
        ) as process,
    ):
        try:
            deadline_s = time.monotonic() + 20
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline_s
                    time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def test_push_and_pull_bring_back_the_same_image(
    store: ImageStore, add_layers: AddTar, tmp_path: Path
) -> None:
    image_digest = add_layers(tar(FILES), tag="app", config=CONFIG)
    with registry(tmp_path) as host:
        reference = parse_reference(f"{host}/group/app:1")
        push(store, store.resolve("app"), reference, SETTINGS, ANONYMOUS, quiet)
        other = ImageStore(tmp_path / "other")
        assert pull(other, reference, SETTINGS, ANONYMOUS, quiet) == image_digest
        assert other.resolve(f"{host}/group/app:1").config == CONFIG
        stored = other.inspect(image_digest)
        by_digest = next(source for source in stored.sources if "@" in source)
        assert pull(other, parse_reference(by_digest), SETTINGS, ANONYMOUS, quiet) == image_digest
        assert other.find(by_digest) == image_digest
        with pytest.raises(RegistryError, match=r"manifest unknown|not found"):
            pull(other, parse_reference(f"{host}/group/app:2"), SETTINGS, ANONYMOUS, quiet)
        wrong = parse_reference(f"{host}/group/app@sha256:{'0' * 64}")
        with pytest.raises(RegistryError, match=r"manifest unknown|not found"):
            pull(other, wrong, SETTINGS, ANONYMOUS, quiet)
        # As docker.io's mirror it is asked first.
        mirrored = replace(SETTINGS, mirror=f"http://{host}/group")
        with pytest.raises(ImageError, match=r"docker.io"):
            pull(other, parse_reference("library/absent"), mirrored, ANONYMOUS, quiet)
        push(store, store.resolve("app"), parse_reference(f"{host}/group/library/busybox"),
             SETTINGS, ANONYMOUS, quiet)  # fmt: skip
        assert pull(other, parse_reference("busybox"), mirrored, ANONYMOUS, quiet) == image_digest


def test_registry_with_authentication(
    store: ImageStore, add_layers: AddTar, tmp_path: Path
) -> None:
    add_layers(tar(FILES), tag="app")
    password = "password"  # noqa: S105 -- as htpasswd -nbB has it in the next line
    line = "user:$2y$05$abcdefghijklmnopqrstuuWG29KuyeAicPCJODk1zjyGvyQUU2awu\n"
    with registry(tmp_path, line) as host:
        reference = parse_reference(f"{host}/app")
        with pytest.raises(RegistryError, match=r"authentication required|unauthorized"):
            push(store, store.resolve("app"), reference, SETTINGS, ANONYMOUS, quiet)
        wrong = Access(credentials="user:wrong")
        with pytest.raises(RegistryError, match=r"authentication required|unauthorized"):
            push(store, store.resolve("app"), reference, SETTINGS, wrong, quiet)
        right = Access(credentials=f"user:{password}")
        push(store, store.resolve("app"), reference, SETTINGS, right, quiet)
        authfile = tmp_path / "auth.json"
        encoded = base64.b64encode(f"user:{password}".encode()).decode()
        authfile.write_text(json.dumps({"auths": {host: {"auth": encoded}}}))
        pull(store, reference, SETTINGS, Access(authfile=authfile), quiet)


def test_multi_platform_index_leads_to_amd64(store: ImageStore, tmp_path: Path) -> None:
    manifests = {}
    files = ImageFiles.of([tar([Member("arch", b"amd64")])])
    other = ImageFiles.of([tar([Member("arch", b"arm64")])])
    other.config["architecture"] = "arm64"
    layout = files.write_oci(tmp_path / "layout")
    blobs = layout / "blobs" / "sha256"
    entries = []
    for architecture, image in (("arm64", other), ("amd64", files)):
        manifests[architecture] = image.finish()
        for name, content in {
            **image.blobs,
            digest(manifests[architecture]): manifests[architecture],
        }.items():
            (blobs / name.removeprefix("sha256:")).write_bytes(content)
        entries.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "size": len(manifests[architecture]),
                "digest": digest(manifests[architecture]),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        }
    ).encode()
    (blobs / digest(index).removeprefix("sha256:")).write_bytes(index)
    (layout / "index.json").write_text(
        json.dumps(
            {
                "schemaVersion": 2,
                "manifests": [
                    {
                        "mediaType": "application/vnd.oci.image.index.v1+json",
                        "size": len(index),
                        "digest": digest(index),
                        "annotations": {"org.opencontainers.image.ref.name": "multi"},
                    }
                ],
            }
        )
    )
    with registry(tmp_path) as host:
        subprocess.run(
            ["skopeo", "copy", "--all", "--insecure-policy", "--dest-tls-verify=false",
             f"oci:{layout}:multi", f"docker://{host}/multi:1"],
            check=True, capture_output=True,
        )  # fmt: skip
        pull(store, parse_reference(f"{host}/multi:1"), SETTINGS, ANONYMOUS, quiet)
        assert listing(store, f"{host}/multi:1") == {"arch": b"amd64"}
        by_digest = f"{host}/multi@{digest(index)}"
        pull(store, parse_reference(by_digest), SETTINGS, ANONYMOUS, quiet)
        assert listing(store, by_digest) == {"arch": b"amd64"}


@pytest.mark.parametrize("format_", FORMATS)
def test_export_and_import(
    store: ImageStore, add_layers: AddTar, tmp_path: Path, format_: str
) -> None:
    config = CONFIG if format_ != "rootfs" else ImageConfig()
    image_digest = add_layers(tar(FILES), tag="app:1", config=config)
    target = tmp_path / "exported:1"
    name = parse_reference("app:1")
    export_image(store, store.resolve("app:1"), target, format_, name, SETTINGS, quiet)
    with pytest.raises(ImageError, match="exists already"):
        export_image(store, store.resolve("app:1"), target, format_, name, SETTINGS, quiet)
    other = ImageStore(tmp_path / "other")
    tag = parse_reference("again")
    found = import_image(other, target, "", "", tag, SETTINGS, quiet)
    if format_.startswith("oci"):
        # OCI configurations have no health checks.
        assert other.resolve("again").config == replace(CONFIG, healthcheck=None)
        assert other.inspect(found).rootfs_digest == store.inspect(image_digest).rootfs_digest
    else:
        assert found == image_digest
    assert not list(tmp_path.glob(".*partial"))


def _spoil(change: Callable[[ImageFiles], Any]) -> ImageFiles:
    files = ImageFiles.of([tar([Member("a", b"1")]), tar([Member("b", b"2")])])
    files.finish()
    change(files)
    return files


def _swap_blob(files: ImageFiles, content: bytes) -> None:
    name = files.manifest["layers"][1]["digest"]
    files.blobs[name] = content[: files.manifest["layers"][1]["size"]].ljust(
        files.manifest["layers"][1]["size"], b"\0"
    )


BAD_MANIFESTS: list[tuple[Callable[[ImageFiles], Any], str]] = [
    (lambda f: f.manifest["layers"][0].update(mediaType="x/y"), "media type|unsupported"),
    (lambda f: f.manifest["config"].update(mediaType="x/y"), "(?i)media ?type|not supported|JSON"),
    (lambda f: f.manifest.update(mediaType="x/y"), "media type|unsupported|unknown"),
    (lambda f: f.manifest["layers"].pop(), "layers"),
    (lambda f: f.blobs.pop(f.manifest["layers"][0]["digest"]), "no such file"),
    (lambda f: _swap_blob(f, b"other"), "digest|did not match"),
    (lambda f: f.manifest["layers"][0].update(digest="sha256:../../../etc/passwd"), "digest"),
    (lambda f: f.manifest["layers"][0].update(digest="md5:00"), "digest"),
    (lambda f: f.config["rootfs"].update(diff_ids=["sha256:" + "0" * 64] * 2), "digest"),
    (lambda f: f.config.update(architecture="arm64"), "amd64"),
    (lambda f: f.config.update(config={"Cmd": 5}), "Cmd|unmarshal"),
    (lambda f: f.manifest["layers"][0].update(size=3), "bytes|size"),
]


@pytest.mark.parametrize(("change", "message"), BAD_MANIFESTS)
def test_bad_layouts(
    store: ImageStore, tmp_path: Path, change: Callable[[ImageFiles], Any], message: str
) -> None:
    files = _spoil(change)
    if "rootfs" in files.config and files.manifest["config"].get("digest"):
        files.manifest["config"].pop("digest")
        files.manifest["config"].pop("size")
    layout = files.write_oci(tmp_path / "layout")
    with pytest.raises(ImageError, match=message):
        import_image(store, layout, "", "", None, SETTINGS, quiet)
    assert store.images() == []


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 5000, bytes(20), tar([Member("a")])[:700], b'{"manifest": 1}'],
)
def test_no_archive_at_all(store: ImageStore, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "source.tar"
    source.write_bytes(content)
    with pytest.raises(BadArchiveError, match=r"source.tar"):
        import_image(store, source, "", "", None, SETTINGS, quiet)
    assert store.images() == []


def test_images_of_file_systems_are_no_archives(
    store: ImageStore, add_layers: AddTar, tmp_path: Path
) -> None:
    """They begin with zeros, by which a tar ends: they would make an empty image."""
    add_layers(tar(FILES), tag="app:1", config=CONFIG)
    erofs = store.resolve("app:1").erofs
    other = ImageStore(tmp_path / "other")
    with pytest.raises(BadArchiveError, match=r"an EROFS image.*`torpor vm run .*/.*` runs it"):
        import_image(other, erofs, "", "", None, SETTINGS, quiet)
    ext4 = tmp_path / "disk.img"
    ext4.write_bytes(bytes(1080) + b"\x53\xef" + bytes(1 << 20))
    with pytest.raises(BadArchiveError, match=r"disk.img: no archive"):
        import_image(other, ext4, "", "", None, SETTINGS, quiet)
    assert other.images() == []


def test_docker_archive_with_traversal_in_its_manifest(store: ImageStore, tmp_path: Path) -> None:
    manifest = [{"Config": "../../etc/passwd", "RepoTags": ["x"], "Layers": ["../../etc/shadow"]}]
    source = tmp_path / "source.tar"
    source.write_bytes(tar([Member("manifest.json", json.dumps(manifest).encode())]))
    with pytest.raises(BadArchiveError, match=r"source.tar"):
        import_image(store, source, "", "", None, SETTINGS, quiet)


def test_bombs_in_archives_are_bounded(store: ImageStore, tmp_path: Path) -> None:
    files = ImageFiles.of([tar([Member("zeros", bytes(64 << 20))])])
    layout = files.write_oci(tmp_path / "layout")
    with pytest.raises(LimitExceededError, match="8,388,608 bytes"):
        import_image(store, layout, "", "", None, SETTINGS, quiet)
    source = tmp_path / "source.tar.gz"
    import gzip

    source.write_bytes(gzip.compress(tar([Member("manifest.json", bytes(64 << 20))])))
    with pytest.raises(ImageError):
        import_image(store, source, "docker-archive", "", None, SETTINGS, quiet)


class _Fake(http.server.BaseHTTPRequestHandler):
    """A registry that misbehaves as its server's `behaviour` says, and notes what it is told."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, _FakeServer)
        server.seen.append((self.path, self.headers.get("Authorization")))
        server.behaviour(self)

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _FakeServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behaviour: Callable[[_Fake], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Fake)
        self.behaviour = behaviour
        self.seen: list[tuple[str, str | None]] = []
        self.stop = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "_FakeServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.shutdown()
        self.server_close()


def _v2(request: _Fake) -> bool:
    if request.path == "/v2/":
        request.answer(200, b"{}")
        return True
    return False


def _stall(request: _Fake) -> None:
    if not _v2(request):
        server = request.server
        assert isinstance(server, _FakeServer)
        server.stop.wait(30)


def _stall_in_body(request: _Fake) -> None:
    if not _v2(request):
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"{")
        request.wfile.flush()
        server = request.server
        assert isinstance(server, _FakeServer)
        server.stop.wait(30)


def _circle(request: _Fake) -> None:
    if not _v2(request):
        request.answer(302, Location=f"http://{request.headers['Host']}{request.path}")


def _error(request: _Fake) -> None:
    request.answer(503, b'{"errors":[{"code":"UNAVAILABLE","message":"down"}]}')


def _garbage(request: _Fake) -> None:
    if not _v2(request):
        request.answer(200, b"<html>", Content_Type="application/vnd.oci.image.manifest.v1+json")


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        (_stall, RegistryUnreachableError, "stalls: nothing arrived for 3 s"),
        (_stall_in_body, RegistryUnreachableError, "stalls: nothing arrived for 3 s"),
        (_circle, RegistryError, "redirects"),
        (_error, RegistryUnreachableError, "can't be reached.*503"),
        (_garbage, RegistryError, "invalid character"),
    ],
)
def test_registries_that_misbehave(
    store: ImageStore, behaviour: Callable[[_Fake], None], error: type[Exception], message: str
) -> None:
    with _FakeServer(behaviour) as server, pytest.raises(error, match=message):
        pull(store, parse_reference(f"{server.host}/x:1"), SETTINGS, ANONYMOUS, quiet)


def test_no_registry_at_all(store: ImageStore) -> None:
    with pytest.raises(RegistryUnreachableError, match="connection refused"):
        pull(store, parse_reference("127.0.0.1:1/x"), SETTINGS, ANONYMOUS, quiet)


def test_no_credentials_follow_a_redirect(store: ImageStore) -> None:
    """Neither the login nor a token reaches the host that a registry redirects to."""
    files = ImageFiles.of([tar([Member("a", b"1")])])
    manifest = files.finish()
    with (
        _FakeServer(lambda _: None) as elsewhere,
        _FakeServer(lambda _: None) as server,
    ):
        # Another name for the same address is another host.
        other = elsewhere.host.replace("127.0.0.1", "localhost")

        def behave(request: _Fake) -> None:
            authorization = request.headers.get("Authorization")
            if request.path.startswith("/token"):
                request.answer(200, b'{"token":"secret-token"}', Content_Type="application/json")
            elif authorization != "Bearer secret-token":
                challenge = f'Bearer realm="http://{server.host}/token",service="s"'
                request.answer(401, WWW_Authenticate=challenge)
            elif "/manifests/" in request.path:
                request.answer(200, manifest, Content_Type=files.manifest["mediaType"])
            elif "/blobs/" in request.path:
                request.answer(307, Location=f"http://{other}{request.path}")
            else:
                request.answer(200, b"{}")

        server.behaviour = behave
        elsewhere.behaviour = lambda request: request.answer(
            200, files.blobs[request.path.rpartition("/")[2]]
        )
        access = Access(credentials="user:password")
        pull(store, parse_reference(f"{server.host}/x:1"), SETTINGS, access, quiet)
    assert any(seen == "Bearer secret-token" for _, seen in server.seen)
    assert len(elsewhere.seen) >= 2
    assert {seen for _, seen in elsewhere.seen} == {None}


def test_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 3) as data:
        store = ImageStore(data)
        for size in (5 << 20, 2_500_000):
            source = tmp_path / "rootfs.tar"
            source.write_bytes(tar([Member("big", os.urandom(size))]))
            with pytest.raises(ImageError, match="no room left on this disk"):
                import_image(store, source, "", "", None, SETTINGS, quiet)
            assert store.images() == []
            assert not list((store.directory / "staging").iterdir())
        layout = ImageFiles.of([tar([Member("big", os.urandom(5 << 20))])]).write_oci(
            tmp_path / "l"
        )
        with pytest.raises(ImageError, match="no room left on this disk"):
            import_image(store, layout, "", "", None, SETTINGS, quiet)
        assert not list((store.directory / "staging").iterdir())


def _which_without_skopeo(name: str, path: str = "") -> str | None:  # noqa: ARG001
    return None if name == "skopeo" else f"/usr/bin/{name}"


def test_missing_tools_are_named(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ImageFiles.of([tar([Member("a")])]).write_oci(tmp_path / "layout")
    monkeypatch.setattr(shutil, "which", _which_without_skopeo)
    with pytest.raises(ToolMissingError, match="skopeo: not installed; `apt-get install skopeo`"):
        import_image(store, source, "oci", "", None, SETTINGS, quiet)


@pytest.mark.parametrize("mirror", ["ftp://x", 'x"\n[[registry]]', "a b"])
def test_wrong_mirrors(mirror: str) -> None:
    with pytest.raises(ImageError, match="registry mirror"):
        mirror_configuration(mirror)


def test_settings(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[images]\nmirror = "a"\nmax_bytes = 5\n')
    found = load_settings(tmp_path, {})
    assert (found.mirror, found.limits.max_bytes) == ("a", 5)
    assert load_settings(tmp_path, {"TORPOR_REGISTRY_MIRROR": "b"}).mirror == "b"
    for wrong in ("mirro = 1", "mirror = 1", "max_bytes = 0", "max_bytes = true", "stall_s = 'x'"):
        (tmp_path / "config.toml").write_text(f"[images]\n{wrong}\n")
        with pytest.raises(ImageError, match=r"config.toml: \[images\]"):
            load_settings(tmp_path, {})

"""A redeploy under load: every request is answered, by one version or the other."""

import base64
import threading
from pathlib import Path

import pytest

from tests.guest_http import ANSWERING
from tests.images.standins import add_bases, add_root
from tests.server import Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

PROGRAM = (
    ANSWERING
    + """
import sys
class Handler(Answering):
    def do_GET(self):
        body = sys.argv[1].encode()
        self.answer(body)
if len(sys.argv) > 3:
    import threading, time
    admin = ThreadingHTTPServer(("0.0.0.0", int(sys.argv[3])), Handler)
    threading.Thread(target=admin.serve_forever, daemon=True).start()
    time.sleep(3)
server = ThreadingHTTPServer(("0.0.0.0", int(sys.argv[2])), Handler)
print("serves", flush=True)
server.serve_forever()
"""
)


def test_another_port_under_the_same_name(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    images = ImageStore(data)
    versions = (("v1", "8080"), ("v2", "9000"), ("v3", "8080"))
    for version, port in versions:
        command = ("python3", "-c", PROGRAM, version, port)
        add_root(images, "python", version, command, (port,))
    seen: list[tuple[int, bytes]] = []
    stop = threading.Event()
    with Server(data) as server:
        host = server.deploy("-n", "app", "v1")

        def ask() -> None:
            while not stop.is_set():
                seen.append(server.get(host))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for version, _ in versions[1:]:
                server.deploy("-n", "app", version)
                assert server.get(host) == (200, version.encode())
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert set(server.instances()) == {"app"}
        groups = server.api("/v1/services")["service_groups"]
        assert len(groups) == 1
    assert {status for status, _ in seen} == {200}, [one for one in seen if one[0] != 200][:5]
    assert {body for _, body in seen} == {b"v1", b"v2", b"v3"}


def test_a_directory_is_known_by_the_name_of_its_image(tmp_path: Path) -> None:
    """With the digest, as another directory of that name may be built later."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    images = ImageStore(data)
    add_bases(images, tmp_path, ["busybox:1"])
    made: dict[str, str] = {}
    with Server(data) as server:
        for version in ("v1", "v2"):
            directory = tmp_path / version / "shop"
            directory.mkdir(parents=True)
            (directory / "index.html").write_text(version)
            (directory / "Dockerfile").write_text(
                "FROM busybox:1\nCOPY index.html /www/\nEXPOSE 8080\n"
                'CMD ["busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]\n'
            )
            assert server.get(server.deploy("-n", version, str(directory)))[1] == version.encode()
            digest = images.resolve("shop").digest
            made[version] = f"shop:latest@{digest}"
            (row,) = server.torpor("instance", "list").splitlines()[-1:]
            assert row.split()[:4:3] == [version, "shop:latest"]
            assert f"shop:latest  {digest[7:19]} " in server.torpor("image", "list")
        assert {name: one["image"] for name, one in server.instances().items()} == made
        # The name means the second one now: the first is known by its digest's beginning.
        (row,) = server.torpor("instance", "list").splitlines()[1:2]
        digits = made["v1"].partition("@sha256:")[2][:12]
        assert row.split()[:4:3] == ["v1", digits]
        assert f"<none>       {digits} " in server.torpor("image", "list")


def test_what_listens_elsewhere_first_is_not_ready(tmp_path: Path) -> None:
    """The template is of a program that serves, so that its clones do from their first moment."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    command = ("python3", "-c", PROGRAM, "late", "8080", "9999")
    add_root(ImageStore(data), "python", "late", command, ("8080",))
    with Server(data) as server:
        host = server.deploy("-n", "app", "late")
        (log,) = server.api("/v1/instances/log", [{"name": "app"}])["instances"]
        assert b"serves" in base64.b64decode(log["output"]), "it was taken for ready before"
        assert server.get(host) == (200, b"late")

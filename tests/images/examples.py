"""`make test-examples`: every sample application is built, and answers as its README says.

Each is run natively, by chroot(2) into its image under a writable overlay, in a network namespace
of this process's own, so that port 8080 is free. Images and base images stay in build/examples.
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness import REPOSITORY, TORPOR
from torpor.images import ResolvedImage, resolve

EXAMPLES = REPOSITORY / "examples"
DATA = REPOSITORY / "build" / "examples"
PORT = 8080
START_TIMEOUT_S = 30
UUID = "7a3d9b70-3f4e-4c1c-9a77-0d6e3f6b2b11"


def request(path: str, body: bytes | None = None, method: str | None = None) -> str:
    """The body of an answer whose status is a success."""
    message = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}",
        body,
        {"Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(message, timeout=10) as answer:  # noqa: S310 -- the same
        content: bytes = answer.read()
    return content.decode()


def status_of(path: str) -> int:
    try:
        request(path)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def bun_counter(root: Path) -> None:
    assert request("/") == f'{{"instance":"{UUID}","count":1}}'
    assert json.loads(request("/")) == {"instance": UUID, "count": 2}
    assert json.loads(request("/peek"))["count"] == 2
    other = UUID.replace("7a3d", "0000")
    (root / "run/torpor/instance").write_text(json.dumps({"uuid": other}))
    assert json.loads(request("/peek")) == {"instance": other, "count": 2}
    assert status_of("/other") == 404


def bun_chat(_: Path) -> None:
    assert "WebSocket" in request("/")
    with _web_socket() as one:
        one.sendall(_frame(b"hello"))
        assert _receive(one) == b"visitor 1: hello"
        with _web_socket() as two:
            assert _receive(two) == b"visitor 1: hello", "the history"
            two.sendall(_frame(b"hi"))
            assert _receive(one) == _receive(two) == b"visitor 2: hi"


def _web_socket() -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", PORT), 10)
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 101"), head
    return connection


def _frame(text: bytes) -> bytes:
    # RFC 6455, section 5.2: final text frame, masked as a client's must be (here with zeros).
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text


def _receive(connection: socket.socket) -> bytes:
    first, length = connection.recv(2, socket.MSG_WAITALL)
    assert (first, length < 126) == (0x81, True)
    return connection.recv(length, socket.MSG_WAITALL)


def node_express(_: Path) -> None:
    assert json.loads(request("/")) == {"framework": "express", "notes": 0}
    assert json.loads(request("/notes", b'{"text":"a"}')) == {"id": 1, "text": "a"}
    assert json.loads(request("/notes")) == [{"id": 1, "text": "a"}]


def python_fastapi(_: Path) -> None:
    assert json.loads(request("/items", b'{"text":"a"}')) == {"number": 1, "text": "a"}
    assert json.loads(request("/items/1"))["text"] == "a"
    assert status_of("/items/2") == 404


def python_flask(_: Path) -> None:
    assert json.loads(request("/", b"to be or not to be")) == {"distinct": 4}
    assert json.loads(request("/"))["words"]["to"] == 2


def go_http(_: Path) -> None:
    request("/kv/a", b"value", "PUT")
    assert request("/kv/a") == "value"
    assert status_of("/kv/b") == 404
    assert json.loads(request("/"))["keys"] == 1


def nginx_static(_: Path) -> None:
    assert "Static files by nginx" in request("/")
    assert "sans-serif" in request("/style.css")
    assert status_of("/none") == 404


def php(_: Path) -> None:
    assert json.loads(request("/", b"me"))["entries"] == 1
    assert json.loads(request("/"))["last"] == "me"


def ruby_sinatra(_: Path) -> None:
    assert 1 <= json.loads(request("/roll", b""))["pips"] <= 6
    assert json.loads(request("/")) == {"framework": "sinatra", "rolls": 1}


def redis(_: Path) -> None:
    with socket.create_connection(("127.0.0.1", PORT), 10) as connection:
        for command, answer in ((b"SET a 1", b"+OK"), (b"INCR a", b":2"), (b"PING", b"+PONG")):
            connection.sendall(command + b"\r\n")
            assert connection.recv(100) == answer + b"\r\n"


CHECKS: dict[str, Callable[[Path], None]] = {
    "bun-counter": bun_counter,
    "bun-chat": bun_chat,
    "node-express": node_express,
    "python-fastapi": python_fastapi,
    "python-flask": python_flask,
    "go-http": go_http,
    "nginx-static": nginx_static,
    "php": php,
    "ruby-sinatra": ruby_sinatra,
    "redis": redis,
}


@contextmanager
def running(image: ResolvedImage, scratch: Path) -> Iterator[Path]:
    """Runs an image's program in its root file system; yields the root."""
    for name in ("lower", "upper", "work", "root"):
        (scratch / name).mkdir()
    root = scratch / "root"
    mount("-t", "erofs", "-o", "loop,ro", image.erofs, scratch / "lower")
    options = ",".join(
        f"{key}={scratch / name}"
        for key, name in (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work"))
    )
    mount("-t", "overlay", "-o", options, "overlay", root)
    for name in ("proc", "dev", "run/torpor", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    mount("-t", "proc", "proc", root / "proc")
    mount("--rbind", "/dev", root / "dev")
    (root / "run/torpor/instance").write_text(json.dumps({"uuid": UUID, "name": "x"}))
    config = image.config
    log = scratch / "log"
    with log.open("wb") as output, subprocess.Popen(
        # A PID namespace, so that all that the program started ends with it.
        ["unshare", "--pid", "--fork", "--kill-child", f"--root={root}",
         f"--wd={config.workdir}", *config.argv()],
        env=dict(variable.split("=", 1) for variable in config.env),
        stdin=subprocess.DEVNULL, stdout=output, stderr=output,
    ) as process:  # fmt: skip
        try:
            deadline_s = time.monotonic() + START_TIMEOUT_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", PORT), 1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline_s:
                        raise RuntimeError(f"does not listen: {log.read_text()}") from None
                    time.sleep(0.05)
            yield root
        finally:
            process.kill()


def mount(*words: "str | Path") -> None:
    subprocess.run(["mount", *words], check=True)


def main(names: list[str]) -> int:
    if os.environ.get("TORPOR_EXAMPLES_NAMESPACE") is None:
        for name in names or CHECKS:
            print(f"== building {name}", flush=True)
            command: list[str | Path] = [
                TORPOR,
                "--data",
                DATA,
                "build",
                "-t",
                name,
                EXAMPLES / name,
            ]
            subprocess.run(command, check=True)
        os.environ["TORPOR_EXAMPLES_NAMESPACE"] = "1"
        again = [sys.executable, "-m", "tests.images.examples", *names]
        os.execvp("unshare", ["unshare", "--mount", "--net", *again])
    subprocess.run([shutil.which("ip") or "/sbin/ip", "link", "set", "lo", "up"], check=True)
    failed = []
    for name in names or CHECKS:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            mount("-t", "tmpfs", "tmpfs", scratch)
            try:
                with running(resolve(name, DATA), Path(scratch)) as root:
                    CHECKS[name](root)
                print(f"{name} ok", flush=True)
            except Exception as error:  # every example is tried
                failed.append(name)
                print(f"{name} FAILED: {error!r}", flush=True)
            finally:
                subprocess.run(["umount", "-R", "-l", scratch], check=True)
    print(f"{len(names or CHECKS) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What each sample application answers, as its README says."""

import base64
import json
import os
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Server:
    """A sample application that listens on a port of this machine's loopback interface."""

    port: int
    set_instance: Callable[[str], None] | None = None
    """Gives it another identity, where the test rules over that."""

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 60)

    def request(self, path: str, body: bytes | None = None, method: str | None = None) -> str:
        """The body of an answer whose status is a success."""
        message = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            body,
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(message, timeout=60) as answer:  # noqa: S310 -- the same
            content: bytes = answer.read()
        return content.decode()

    def status_of(self, path: str) -> int:
        try:
            self.request(path)
        except urllib.error.HTTPError as error:
            return error.code
        return 200


def bun_counter(server: Server) -> None:
    instance = json.loads(server.request("/peek"))["instance"]
    assert str(uuid.UUID(instance)) == instance
    assert server.request("/") == f'{{"instance":"{instance}","count":1}}'
    assert json.loads(server.request("/")) == {"instance": instance, "count": 2}
    assert json.loads(server.request("/peek"))["count"] == 2
    if server.set_instance is not None:
        other = str(uuid.uuid4())
        server.set_instance(other)
        assert json.loads(server.request("/peek")) == {"instance": other, "count": 2}
    assert server.status_of("/other") == 404


def bun_chat(server: Server) -> None:
    assert "WebSocket" in server.request("/")
    with _web_socket(server) as one:
        one.sendall(_frame(b"hello"))
        assert _receive(one) == b"visitor 1: hello"
        with _web_socket(server) as two:
            assert _receive(two) == b"visitor 1: hello", "the history"
            two.sendall(_frame(b"hi"))
            assert _receive(one) == _receive(two) == b"visitor 2: hi"


def _web_socket(server: Server) -> socket.socket:
    connection = server.connect()
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while byte := connection.recv(1):
        head += byte
        if head.endswith(b"\r\n\r\n"):
            break
    assert head.startswith(b"HTTP/1.1 101"), head
    return connection


def _frame(text: bytes) -> bytes:
    # RFC 6455, section 5.2: final text frame, masked as a client's must be (here with zeros).
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text


def _receive(connection: socket.socket) -> bytes:
    first, length = connection.recv(2, socket.MSG_WAITALL)
    assert (first, length < 126) == (0x81, True)
    return connection.recv(length, socket.MSG_WAITALL)


def node_express(server: Server) -> None:
    assert json.loads(server.request("/")) == {"framework": "express", "notes": 0}
    assert json.loads(server.request("/notes", b'{"text":"a"}')) == {"id": 1, "text": "a"}
    assert json.loads(server.request("/notes")) == [{"id": 1, "text": "a"}]


def python_fastapi(server: Server) -> None:
    assert json.loads(server.request("/items", b'{"text":"a"}')) == {"number": 1, "text": "a"}
    assert json.loads(server.request("/items/1"))["text"] == "a"
    assert server.status_of("/items/2") == 404


def python_flask(server: Server) -> None:
    assert json.loads(server.request("/", b"to be or not to be")) == {"distinct": 4}
    assert json.loads(server.request("/"))["words"]["to"] == 2


def go_http(server: Server) -> None:
    server.request("/kv/a", b"value", "PUT")
    assert server.request("/kv/a") == "value"
    assert server.status_of("/kv/b") == 404
    assert json.loads(server.request("/"))["keys"] == 1


def nginx_static(server: Server) -> None:
    assert "Static files by nginx" in server.request("/")
    assert "sans-serif" in server.request("/style.css")
    assert server.status_of("/none") == 404


def php(server: Server) -> None:
    assert json.loads(server.request("/", b"me"))["entries"] == 1
    assert json.loads(server.request("/"))["last"] == "me"


def ruby_sinatra(server: Server) -> None:
    assert 1 <= json.loads(server.request("/roll", b""))["pips"] <= 6
    assert json.loads(server.request("/")) == {"framework": "sinatra", "rolls": 1}


def redis(server: Server) -> None:
    with server.connect() as connection:
        for command, answer in ((b"SET a 1", b"+OK"), (b"INCR a", b":2"), (b"PING", b"+PONG")):
            connection.sendall(command + b"\r\n")
            assert connection.recv(100) == answer + b"\r\n"


CHECKS: dict[str, Callable[[Server], None]] = {
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

"""Connections of real microVMs that outlive their sleep."""

import base64
import os
from collections.abc import Iterator

import pytest

from tests.harness import REPOSITORY
from tests.images.standins import add_bases
from tests.proxy.client import Client
from tests.server import Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm
CLIENTS = 20
SLEEPS = 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("vms")
    data = directory / "data"
    data.mkdir(mode=0o700)
    add_bases(ImageStore(data), directory, ["oven/bun:1"])
    with Server(data) as server:
        yield server


class WebSocket(Client):
    """Text messages of at most 125 bytes."""

    def __init__(self, port: int, host: str, path: str) -> None:
        super().__init__(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        head = [
            f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: Upgrade", "Upgrade: websocket",
            "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}",
        ]  # fmt: skip
        self.send("\r\n".join([*head, "", ""]).encode())
        answer = self.head()
        assert answer.status == 101, answer

    def say(self, text: str) -> None:
        data, mask = text.encode(), os.urandom(4)
        masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
        self.send(bytes([0x81, 0x80 | len(data)]) + mask + masked)

    def hear(self) -> str:
        first, length = self.exactly(2)
        assert (first, length < 126) == (0x81, True)
        return self.exactly(length).decode()


def test_a_chat_sleeps_between_its_messages(server: Server) -> None:
    """No connection is lost, no message is lost or doubled."""
    options = ["-n", "chat", "--scale-to-zero", "idle", "--cooldown", "100ms"]
    host = server.deploy(*options, str(REPOSITORY / "examples" / "bun-chat"))
    members = [WebSocket(server.proxy_port, host, "/chat") for _ in range(CLIENTS)]
    for turn in range(SLEEPS):
        server.wait_for("chat", "standby")
        speaker = members[turn % CLIENTS]
        speaker.say(f"message {turn}")
        for member in members:
            while f"message {turn}" not in (heard := member.hear()):
                assert "message" not in heard, "doubled, or of another turn"
    server.wait_for("chat", "standby")
    for member in members:
        member.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            member.socket.recv(1)
        member.socket.close()

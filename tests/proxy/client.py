"""A client that sends the bytes it is given, and reads answers of HTTP/1.1."""

from __future__ import annotations

import socket
from dataclasses import dataclass

TIMEOUT_S = 30.0


@dataclass
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes


class Client:
    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, TIMEOUT_S)
        self._data = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def get(self, host: str, path: str = "/", *fields: str) -> Answer:
        head = [f"GET {path} HTTP/1.1", f"Host: {host}", *fields]
        self.send("\r\n".join([*head, "", ""]).encode("latin-1"))
        return self.answer()

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError(self._data)
        self._data += data

    def line(self) -> bytes:
        while b"\n" not in self._data:
            self._more()
        line, _, self._data = self._data.partition(b"\n")
        return line.rstrip(b"\r")

    def exactly(self, count: int) -> bytes:
        while len(self._data) < count:
            self._more()
        data, self._data = self._data[:count], self._data[count:]
        return data

    def head(self) -> Answer:
        version, status, *_ = self.line().split(b" ")
        assert version.startswith(b"HTTP/1.")
        fields = {}
        while line := self.line():
            name, _, value = line.decode("latin-1").partition(":")
            fields[name.lower()] = value.strip()
        return Answer(int(status), fields, b"")

    def answer(self) -> Answer:
        answer = self.head()
        if answer.fields.get("transfer-encoding") == "chunked":
            while size := int(self.line(), 16):
                answer.body += self.exactly(size)
                self.line()
            self.line()
        else:
            answer.body = self.exactly(int(answer.fields.get("content-length", "0")))
        return answer

    def ended(self) -> bool:
        """Whether the other side closes, with nothing more to say."""
        try:
            return self._data == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def get(address: tuple[str, int], host: str, path: str = "/", *fields: str) -> Answer:
    """One request on a connection of its own."""
    with Client(address) as client:
        return client.get(host, path, *fields)

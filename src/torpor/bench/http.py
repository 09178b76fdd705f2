"""A client for loads: HTTP/1.1 over kept connections, for as little processor time as Python lets.

The client shares the machine with what it measures, so a request is one write of bytes that were
made beforehand, and its answer is read by httptools' C parser. Nothing is sent twice by itself: a
counter that is asked twice counts two.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, cast

import httptools

MAX_BODY_BYTES = 64 << 20
REUSE_WITHIN_S = 3.0
"""A connection that was silent longer is not used again: a server may be closing it just now."""


class LostError(Exception):
    """No whole answer came: it is not known whether the request was carried out."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes
    took_s: float
    """From just before the request was written to its answer's last byte."""


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.closed = False
        self.used_s = 0.0
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._began_s = 0.0
        self._parts: list[bytes] = []
        self._size = 0
        self._parser: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not of that class

    def ask(self, request: bytes) -> "asyncio.Future[Answer]":
        """Sends a request; the answer, or LostError."""
        assert self._transport is not None  # noqa: S101 -- connected before it is handed out
        self._waiting = waiting = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._parts, self._size = [], 0
        self._began_s = time.perf_counter()
        if self.closed:
            self._lose("the server closed the connection")
        else:
            self._transport.write(request)
        return waiting

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:
            self.close()  # an answer that nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lose(f"the answer is not HTTP: {error}")

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            self._lose(f"the answer is longer than {MAX_BODY_BYTES} bytes")
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        status = self._parser.get_status_code()
        if status < 200:  # 1xx: the answer itself follows
            return
        self.used_s = time.perf_counter()
        waiting, self._waiting = self._waiting, None
        if not self._parser.should_keep_alive():
            self.close()
        if waiting is not None and not waiting.done():
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            waiting.set_result(Answer(status, body, self.used_s - self._began_s))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._lose(f"the connection was lost: {exc or 'closed by the server'}")

    def _lose(self, why: str) -> None:
        waiting, self._waiting = self._waiting, None
        self.close()
        if waiting is not None and not waiting.done():
            waiting.set_exception(LostError(why))

    def close(self) -> None:
        """Closes it; what waits is lost."""
        self.closed = True
        if self._transport is not None:
            self._transport.close()
        if self._waiting is not None:
            self._lose("closed")


class Client:
    """Connections to one address: made when needed, kept, at most `limit` at once."""

    def __init__(
        self, host: str, port: int, *, limit: int = 64, headers: str = "", timeout_s: float = 60.0
    ) -> None:
        self.host = host
        self.port = port
        self._headers = headers
        self._timeout_s = timeout_s
        self._free: deque[_Connection] = deque()
        self._room = asyncio.Semaphore(limit)

    async def get(self, path: str = "/", *, host: str = "") -> Answer:
        """GET of a path. Raises LostError."""
        return await self.send(self.encode("GET", path, host=host))

    async def request(self, method: str, path: str, body: bytes, *, host: str = "") -> Answer:
        """A request with a JSON body. Raises LostError."""
        return await self.send(self.encode(method, path, body, host=host))

    def encode(self, method: str, path: str, body: bytes | None = None, *, host: str = "") -> bytes:
        """The bytes of a request."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {host or f'{self.host}:{self.port}'}\r\n"
        head += self._headers
        if body is None:
            return (head + "\r\n").encode("ascii")
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode("ascii") + body

    async def send(self, request: bytes) -> Answer:
        """Sends a request that `encode` made. Raises LostError."""
        async with self._room:
            connection = await self._connection()
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await connection.ask(request)
            except TimeoutError:
                connection.close()
                raise LostError(f"no answer within {self._timeout_s:.0f} s") from None
            except BaseException:
                connection.close()
                raise
            if not connection.closed:
                self._free.append(connection)
            return answer

    async def _connection(self) -> _Connection:
        now_s = time.perf_counter()
        while self._free:
            connection = self._free.pop()  # the one used last
            if not connection.closed and now_s - connection.used_s < REUSE_WITHIN_S:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(_Connection, self.host, self.port)
        except OSError as error:
            raise LostError(f"no connection: {error}") from error
        return connection

    def close(self) -> None:
        """Closes the connections that are not in use."""
        while self._free:
            self._free.pop().close()

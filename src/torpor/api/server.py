"""Listening: TCP for everybody with a token, a Unix socket for torpord's own user and root."""

import asyncio
import contextlib
import os
import socket
import struct
from asyncio import Transport
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from torpor.api.app import LOCAL
from torpor.errors import TorporError
from torpor.sockets import bind_unix

BACKLOG = 1024
DATE_S = 1.0
"""How often the date of answers is set anew."""


class _Protocol(HttpToolsProtocol):
    """Lets only the right users use the Unix socket, by what the kernel says of the other end."""

    _local = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family == socket.AF_UNIX:
            if not _allowed(sock):
                transport.abort()
                return
            self._local = True
        super().connection_made(transport)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._local:
            self.scope.setdefault("extensions", {})[LOCAL] = {}


def _allowed(sock: Any) -> bool:
    size = struct.calcsize("3i")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening socket; an IPv6 address is in brackets. Raises TorporError that names it."""
    name = host.removeprefix("[").removesuffix("]")
    try:
        family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((name, port))
        sock.listen(BACKLOG)
    except OSError as error:
        raise TorporError(
            f"cannot listen on {host}:{port}: {error.strerror}: name another with --listen"
        ) from error
    return sock


def listen_local(path: Path) -> socket.socket:
    """The local socket, which nobody else can even connect to: its directory is 0700."""
    path.unlink(missing_ok=True)
    old = os.umask(0o177)
    try:
        sock = bind_unix(path, socket.SOCK_STREAM)
    finally:
        os.umask(old)
    sock.listen(BACKLOG)
    return sock


class Server(uvicorn.Server):
    """Leaves signals to torpord, which has more to close than a server, and hardly runs at rest."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Lets `serve` come to its end."""
        self.should_exit = True
        self._stopping.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        # uvicorn's own looks ten times a second whether it is to stop.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), DATE_S)


def make_server(app: ASGIApp) -> Server:
    """A server for `serve(sockets=[...])`."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return Server(config)

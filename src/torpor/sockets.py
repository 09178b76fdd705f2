"""Binding Unix sockets."""

import os
import socket
from pathlib import Path


def bind_seqpacket(path: Path) -> socket.socket:
    """Bind a socket of datagrams that stay whole at `path`, as `bind_unix` does."""
    return bind_unix(path, socket.SOCK_SEQPACKET)


def bind_unix(path: Path, kind: int) -> socket.socket:
    """Bind a socket at `path`, which may be longer than the 108 bytes of sun_path."""
    holder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    bound = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    try:
        bound.bind(f"/proc/self/fd/{holder}/{path.name}")
    except BaseException:
        bound.close()
        raise
    finally:
        os.close(holder)
    return bound

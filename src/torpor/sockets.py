"""Binding Unix sockets."""

import os
import socket
from pathlib import Path


def bind_seqpacket(path: Path) -> socket.socket:
    """Bind a socket at `path`, which may be longer than the 108 bytes of sun_path."""
    holder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        bound.bind(f"/proc/self/fd/{holder}/{path.name}")
    except BaseException:
        bound.close()
        raise
    finally:
        os.close(holder)
    return bound

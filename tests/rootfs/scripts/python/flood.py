"""More sockets and connections than there may be: the errors are Linux's, and the machine stays well."""

import errno
import resource
import socket

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 60_000), hard))


def until_error(make, most):
    """Makes things until one fails; returns the error's name, and all are gone again."""
    kept = []
    try:
        while len(kept) < most:
            kept.append(make())
    except OSError as error:
        return errno.errorcode[error.errno]
    return "none"


print("sockets", until_error(socket.socket, 1_000_000) in ("EMFILE", "ENFILE"))
print("pairs", until_error(socket.socketpair, 1_000_000) in ("EMFILE", "ENFILE"))

listener = socket.create_server(("127.0.0.1", 0), backlog=8)


def connect():
    s = socket.socket()
    s.setblocking(False)
    code = s.connect_ex(listener.getsockname())
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, "connect")
    return s


print("listen flood", until_error(connect, 2000))


def outside():
    s = socket.socket()
    s.setblocking(False)
    code = s.connect_ex(("192.0.2.1", 9))
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, "connect")
    return s


print("connections", until_error(outside, 20_000))
a, b = socket.socketpair()
a.send(b"x")
assert b.recv(1) == b"x"
again = socket.create_server(("127.0.0.1", 0))
with socket.create_connection(again.getsockname()) as client:
    accepted, _ = again.accept()
    client.sendall(b"y")
    assert accepted.recv(1) == b"y"
print("still well")

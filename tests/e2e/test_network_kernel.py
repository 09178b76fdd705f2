"""Sockets inside the guest: what programs see is as natively."""

import pytest

from tests.e2e.test_programs import compare
from tests.harness import run_native, vm_run

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("name", ["net_sockets"])
def test_sockets(name: str) -> None:
    assert compare("programs", name).status == 0


PROC_NET = """
import socket
tcp = socket.create_server(("127.0.0.1", 8001))
client = socket.create_connection(("127.0.0.1", 8001))
accepted = tcp.accept()[0]
accepted.send(b"12345")
six = socket.create_server(("::1", 8002), family=socket.AF_INET6)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 8003))
unix = socket.socket(socket.AF_UNIX)
unix.bind("\\0name")
unix.listen()
for name in ("tcp", "tcp6", "udp", "udp6", "unix"):
    lines = open(f"/proc/net/{name}").read().replace(f"{client.getsockname()[1]:04X}", "PORT")
    rows = [line.split() for line in lines.splitlines()]
    # Not compared: numbers of slots and inodes, addresses in the kernel, timers.
    columns = {"tcp": (1, 2, 3, 4, 7), "udp": (1, 2, 3, 4, 7), "unix": (1, 2, 3, 4, 5, 7)}
    wanted = columns[name.removesuffix("6")]
    print(name, rows[0], len(lines.splitlines()[0]))
    print(sorted([row[at] for at in wanted] for row in rows[1:]))
"""


def test_lists_of_sockets() -> None:
    native = run_native("python", "python3", "-c", PROC_NET, alone=True)
    assert native.status == 0, str(native)
    assert str(vm_run("python", "python3", "-c", PROC_NET)) == str(native)

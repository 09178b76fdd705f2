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
waiting = socket.create_connection(("127.0.0.1", 8001))
waiting.send(b"123")
six = socket.create_server(("::1", 8002), family=socket.AF_INET6)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 8003))
unix = socket.socket(socket.AF_UNIX)
unix.bind("\\0name")
unix.listen()
unix_client = socket.socket(socket.AF_UNIX)
unix_client.connect("\\0name")
for name in ("tcp", "tcp6", "udp", "udp6", "unix"):
    lines = open(f"/proc/net/{name}").read()
    for known, one in (("PORT", client), ("WAITING", waiting)):
        lines = lines.replace(f":{one.getsockname()[1]:04X}", f":{known}")
    rows = [line.split() for line in lines.splitlines()]
    # Not compared: numbers of slots, inodes (but whether there is one), kernel addresses, timers.
    columns = {"tcp": (1, 2, 3, 4, 7), "udp": (1, 2, 3, 4, 7), "unix": (1, 2, 3, 4, 5, 7)}
    wanted = columns[name.removesuffix("6")]
    inode = 6 if name == "unix" else 9
    print(name, rows[0], len(lines.splitlines()[0]))
    shown = lambda row: [*(row[at] for at in wanted if at < len(row)), row[inode] == "0"]
    print(sorted(map(shown, rows[1:])))
"""


def test_lists_of_sockets() -> None:
    native = run_native("python", "python3", "-c", PROC_NET, alone=True)
    assert native.status == 0, str(native)
    assert str(vm_run("python", "python3", "-c", PROC_NET)) == str(native)

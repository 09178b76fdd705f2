"""A VM process that its guest has taken over: it says that it is some other instance, and runs.

python -m tests.faults.impostor SOCKET UUID GENERATION
"""

import json
import signal
import socket
import sys
from pathlib import Path

from tests.vm_status import STATUS
from torpor.envelope import HEADER_BYTES, Envelope
from torpor.sockets import bind_seqpacket

ENVELOPE = Envelope(b"TPVM", 1)


def main(path: str, uuid: str, generation: str) -> None:
    """Answers whoever connects, until it is killed."""
    who = {"uuid": uuid.replace("-", ""), "generation": int(generation)}
    status = STATUS | {"instance": who}
    with bind_seqpacket(Path(path)) as control:
        control.listen()
        print("listening", flush=True)
        while True:
            answer(control.accept()[0], status)


def answer(connection: socket.socket, status: dict[str, object]) -> None:
    """Every command is carried out, it says."""
    with connection:
        while request := connection.recv(1 << 18):
            asked = json.loads(request[HEADER_BYTES:])
            ok = status if "query" in asked["command"] else {}
            reply = json.dumps({"id": asked["id"], "ok": ok}).encode()
            connection.send(ENVELOPE.wrap(reply, 0))


if __name__ == "__main__":
    signal.alarm(600)
    main(*sys.argv[1:])

"""The controller's end of the control socket, against the other end of a socket pair."""

import asyncio
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from torpor.vmprocess import Ended, Ready, Refused, VMProcess
from torpor.vmprocess.messages import ProtocolError, decode


def datagram(body: dict[str, Any], descriptors: int = 0, version: int = 1) -> bytes:
    data = json.dumps(body).encode()
    return struct.pack("<4sHHII", b"TPVM", version, descriptors, len(data), 0) + data


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.settimeout(10)
    return ours, theirs


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_replies_find_their_requests_whatever_the_order() -> None:
    async def run() -> None:
        ours, theirs = pair()
        process = VMProcess(ours, 1)
        first = asyncio.ensure_future(process.query())
        second = asyncio.ensure_future(process.standby(7, within_s=1.5, busy=True))
        await asyncio.sleep(0)
        requests = [json.loads(theirs.recv(65536)[16:]) for _ in range(2)]
        assert requests[0]["command"] == {"query": {}}
        assert requests[1]["command"] == {
            "standby": {"generation": 7, "busy": True, "within_ms": 1500}
        }
        memory = os.memfd_create("delta")
        stored = {"bytes": 3, "pages": {}, "next_deadline_ns": None, "drew_random": False}
        body = datagram({"id": requests[1]["id"], "ok": stored}, descriptors=1)
        socket.send_fds(theirs, [body], [memory])
        os.close(memory)
        status = {
            "state": "running",
            "instance": None,
            "busy": False,
            "stored_generation": None,
            "still": False,
            "template": None,
            "warm_base": None,
            "seeded": False,
            "unlinked": False,
            "memory_bytes": 1 << 20,
            "cpu_ns": 1,
        }
        theirs.send(datagram({"id": requests[0]["id"], "ok": status}))
        os.close((await second).descriptor)
        assert (await first).state == "running"
        process.close()
        theirs.close()

    asyncio.run(run())


def test_refusals_events_and_the_end() -> None:
    async def run() -> None:
        ours, theirs = pair()
        process = VMProcess(ours, 1)
        waiting = asyncio.ensure_future(process.reset())
        await asyncio.sleep(0)
        error = {"code": "wrong_state", "message": "the VM runs"}
        theirs.send(datagram({"id": json.loads(theirs.recv(65536)[16:])["id"], "error": error}))
        with pytest.raises(Refused, match="the VM runs"):
            await waiting
        theirs.send(datagram({"event": "ready"}))
        assert await process.events.get() == Ready()
        lost = asyncio.ensure_future(process.query())
        await asyncio.sleep(0)
        theirs.close()
        with pytest.raises(ConnectionError):
            await lost
        ended = await process.events.get()
        assert isinstance(ended, Ended)
        assert ended.reason == "lost"
        with pytest.raises(ConnectionError):
            await process.query()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "descriptors"),
    [
        ({"ok": {"bytes": 3}}, 0),
        ({"ok": {"bytes": 3, "pages": {}, "next_deadline_ns": None}}, 1),
        ({"ok": {"bytes": "3", "pages": {}, "next_deadline_ns": None, "drew_random": 1}}, 1),
        ({"ok": 7}, 0),
    ],
)
def test_a_process_whose_reply_lacks_something_is_lost(
    answer: dict[str, Any], descriptors: int
) -> None:
    async def run() -> None:
        ours, theirs = pair()
        process = VMProcess(ours, 1)
        waiting = asyncio.ensure_future(process.standby(7, within_s=1, busy=True))
        await asyncio.sleep(0)
        number = json.loads(theirs.recv(65536)[16:])["id"]
        body = datagram({"id": number} | answer, descriptors=descriptors)
        socket.send_fds(theirs, [body], [theirs.fileno()] * descriptors)
        with pytest.raises(ConnectionError, match="broke the protocol"):
            await waiting
        assert process.ended is not None
        theirs.close()

    before = open_descriptors()
    asyncio.run(run())
    assert open_descriptors() == before


@pytest.mark.parametrize("body", [{"event": "ready"}, {"id": [], "ok": {}}, {"id": {}, "ok": {}}])
def test_descriptors_that_nobody_asked_for_are_closed(body: dict[str, Any]) -> None:
    async def run() -> None:
        ours, theirs = pair()
        process = VMProcess(ours, 1)
        socket.send_fds(theirs, [datagram(body, descriptors=1)], [theirs.fileno()])
        assert isinstance(await process.events.get(), Ended)
        theirs.close()

    before = open_descriptors()
    asyncio.run(run())
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"TPVM",
        datagram({"id": 1}, version=2),
        datagram({"id": 1}, descriptors=1),
        datagram({"id": 1}) + b" ",
        b"XXXX" + datagram({"id": 1})[4:],
    ],
)
def test_what_breaks_the_format_is_refused(bad: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(bad, [])

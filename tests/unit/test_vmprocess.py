"""The controller's end of the control socket, against the other end of a socket pair."""

import asyncio
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.vm_status import STATUS
from torpor.vmprocess import Ended, Ready, Refused, VMProcess, client
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
        theirs.send(datagram({"id": requests[0]["id"], "ok": STATUS}))
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


@pytest.mark.parametrize("is_there", [False, True])
def test_a_process_that_does_not_answer_is_lost(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """At once where it does not even say that it is there, and else after some patience."""
    monkeypatch.setattr(client, "PATIENCE_S", 0.01)
    monkeypatch.setattr(client, "LOOKS", 20 if is_there else 2)
    monkeypatch.setattr(client, "LOOK_S", 0.01 if not is_there else 1.0)
    monkeypatch.setattr(client, "DOUBTS", 5)
    asked = 0

    async def run() -> None:
        ours, theirs = pair()
        theirs.setblocking(False)

        def answer_queries() -> None:
            nonlocal asked
            request = json.loads(theirs.recv(65536)[16:])
            if "query" in request["command"]:
                asked += 1
                if is_there:
                    theirs.send(datagram({"id": request["id"], "ok": STATUS}))

        asyncio.get_running_loop().add_reader(theirs.fileno(), answer_queries)
        process = VMProcess(ours, 1)
        with pytest.raises(ConnectionError, match="what it was told" if is_there else "nothing"):
            await process.standby(7, within_s=1, busy=True)
        ended = await process.events.get()
        assert isinstance(ended, Ended)
        assert ended.reason == "lost"
        asyncio.get_running_loop().remove_reader(theirs.fileno())
        theirs.close()

    asyncio.run(run())
    assert asked == (6 if is_there else 1)


def test_patience_ends_with_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late that is: a process that answers others is not lost, nor asked for ever."""
    monkeypatch.setattr(client, "PATIENCE_S", 0.01)
    asked: list[str] = []

    async def run() -> None:
        ours, theirs = pair()
        theirs.setblocking(False)
        process = VMProcess(ours, 1)
        waiting = asyncio.ensure_future(process.reset())
        late: list[int] = []
        has_been_patient = asyncio.Event()

        def answer() -> None:
            request = json.loads(theirs.recv(65536)[16:])
            (command,) = request["command"]
            asked.append(command)
            if command == "query":
                theirs.send(datagram({"id": request["id"], "ok": STATUS}))
                if len(asked) > 3:
                    has_been_patient.set()
            else:
                late.append(request["id"])

        asyncio.get_running_loop().add_reader(theirs.fileno(), answer)
        await has_been_patient.wait()
        theirs.send(datagram({"id": late[0], "ok": {"retired": False}}))
        assert await waiting
        before = len(asked)
        await asyncio.sleep(0.1)
        assert len(asked) <= before + 1
        assert process.ended is None
        process.close()
        asyncio.get_running_loop().remove_reader(theirs.fileno())
        theirs.close()

    asyncio.run(run())

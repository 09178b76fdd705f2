"""torpord's end of the proxy's socket, and the proxy as a process: for tests of the proxy alone."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import socket
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torpor.binaries import find_binary

_HEADER = struct.Struct("<4sHHII")
TIMEOUT_S = 30.0
Ask = Callable[[dict[str, Any]], dict[str, Any]]


class Refusal(Exception):  # noqa: N818 -- an answer
    """An error that torpord answers, or the proxy."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Ends(Protocol):
    """A guest, as far as it is attached."""

    theirs: socket.socket
    generation: int


class Proxy:
    """The process."""

    def __init__(self, data: Path, *options: str) -> None:
        (data / "run").mkdir(mode=0o700, exist_ok=True)
        self.data = data
        self.log = (data / "proxy.log").open("ab+")
        words = [
            str(find_binary("torpor-proxy")),
            "--data",
            str(data),
            "--http",
            "127.0.0.1:0",
            *options,
        ]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout is not None
        self.addresses: dict[str, tuple[str, int]] = {}
        for _ in range(1 + ("--tls" in options) + ("--metrics" in options)):
            name, _, url = self.process.stdout.readline().strip().partition(" ")
            host, _, port = url.partition("://")[2].rpartition(":")
            self.addresses[name] = (host, int(port.partition("/")[0]))

    @property
    def address(self) -> tuple[str, int]:
        return self.addresses["proxy"]

    def logged(self) -> str:
        return (self.data / "proxy.log").read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


def _unknown(fields: dict[str, Any]) -> dict[str, Any]:
    raise Refusal("unknown", f"nobody has {fields}")


class Torpord:
    """Says what it is told to say. `on["wake"]` and `on["idle"]` answer the proxy, in threads."""

    def __init__(self, data: Path, on: dict[str, Ask] | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        deadline = time.monotonic() + TIMEOUT_S
        holder = os.open(data / "run", os.O_PATH)
        while True:
            try:
                self._socket.connect(f"/proc/self/fd/{holder}/proxy.sock")
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        os.close(holder)
        self._next_id = 1
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self.on: dict[str, Ask] = {"wake": _unknown, **(on or {})}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.changed = threading.Condition()
        self.gone = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        self.welcome = self.ask("hello", server=str(uuid.uuid4()), suffix="localhost")

    def close(self) -> None:
        if not self.gone.is_set():
            self._socket.shutdown(socket.SHUT_RDWR)
            self.gone.wait(10)
        self._socket.close()

    def send_raw(self, datagram: bytes) -> None:
        self._socket.send(datagram)

    def _send(self, document: dict[str, Any], descriptors: list[int] | None = None) -> None:
        body = json.dumps(document).encode()
        count = len(descriptors or [])
        datagram = _HEADER.pack(b"TPPX", 1, count, len(body), 0) + body
        socket.send_fds(self._socket, [datagram], descriptors or [])

    def ask(
        self, what: str, descriptors: list[int] | None = None, /, **fields: Any
    ) -> dict[str, Any]:
        """A request to the proxy. Raises Refusal."""
        return self.answer(self.begin(what, descriptors, **fields))

    def begin(
        self, what: str, descriptors: list[int] | None = None, /, **fields: Any
    ) -> queue.Queue[dict[str, Any]]:
        """A request whose answer is looked at later, by `answer`."""
        answer: queue.Queue[dict[str, Any]] = queue.Queue()
        with self._lock:
            id_ = self._next_id
            self._next_id += 1
            self._answers[id_] = answer
            self._send({"id": id_, "ask": {what: fields}}, descriptors)
        return answer

    def answer(self, begun: queue.Queue[dict[str, Any]]) -> dict[str, Any]:
        """What a request was answered. Raises Refusal."""
        message = begun.get(timeout=TIMEOUT_S)
        if "error" in message:
            raise Refusal(message["error"]["code"], message["error"]["message"])
        return dict(message["ok"])

    def tell(self, name: str, **fields: Any) -> None:
        with self._lock:
            self._send({"tell": {name: fields}})

    def _run(self) -> None:
        while True:
            try:
                datagram = self._socket.recv(1 << 18)
            except OSError:
                datagram = b""
            if not datagram:
                self.gone.set()
                return
            magic, version, count, length, zero = _HEADER.unpack_from(datagram)
            body = datagram[_HEADER.size :]
            assert (magic, version, count, length, zero) == (b"TPPX", 1, 0, len(body), 0)
            message = json.loads(body)
            if "tell" in message:
                ((name, fields),) = message["tell"].items()
                with self.changed:
                    self.told.append((name, fields))
                    self.changed.notify_all()
            elif "ask" in message:
                ((name, fields),) = message["ask"].items()
                with self.changed:
                    self.asked.append((name, fields))
                    self.changed.notify_all()
                args = (message["id"], name, fields)
                threading.Thread(target=self._answer, args=args, daemon=True).start()
            else:
                self._answers.pop(message["id"]).put(message)

    def _answer(self, id_: int, name: str, fields: dict[str, Any]) -> None:
        try:
            reply: dict[str, Any] = {"ok": self.on[name](fields)}
        except Refusal as refusal:
            reply = {"error": {"code": refusal.code, "message": refusal.message}}
        except OSError as error:
            reply = {"error": {"code": "failed", "message": str(error)}}
        except queue.Empty:  # the proxy ended, with its test, before it answered what this asked
            return
        # The proxy may be gone by then, with the test's end.
        with self._lock, contextlib.suppress(OSError):
            self._send({"id": id_, **reply})

    def count(self, name: str) -> int:
        """How often the proxy has asked this."""
        return sum(asked == name for asked, _ in self.asked)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, TIMEOUT_S), (self.asked, self.told)

    def lost_link(self, instance: str) -> dict[str, Any]:
        """Waits until a link of this instance is said to be lost, and gives that notice."""

        def notices() -> list[dict[str, Any]]:
            lost = [fields for name, fields in self.told if name == "link_lost"]
            return [fields for fields in lost if fields["instance"] == instance]

        self.wait_for(lambda: bool(notices()))
        return notices()[0]

    # What torpord does with it -------------------------------------------------------------------

    def group(self, hosts: list[str], **fields: Any) -> str:
        """Tells of a new group, by default with port 80 leading to 8080."""
        group = str(uuid.uuid4())
        services = [{"port": 80, "destination_port": 8080, "handlers": ["http"]}]
        self.ask("group", **{"group": group, "hosts": hosts, "services": services, **fields})
        return group

    def attach(
        self,
        guest: Ends,
        group: str | None,
        instance: str | None = None,
        *,
        resumed: bool = False,
        policy: str = "on",
        cooldown_ms: int = 3_600_000,
        notify_ms: int = 0,
        egress: dict[str, Any] | None = None,
        requests_max: int | None = None,
    ) -> str:
        """Hands the guest's link over; returns the instance."""
        instance = instance or str(uuid.uuid4())
        self.ask(
            "attach",
            [guest.theirs.fileno()],
            instance=instance,
            name="test",
            generation=guest.generation,
            group=group,
            resumed=resumed,
            scale_to_zero={
                "policy": policy,
                "cooldown_ms": cooldown_ms,
                "notify_ms": notify_ms,
            },
            egress=egress or {},
            requests_max=requests_max,
        )
        guest.theirs.close()
        return instance

    def output(self, instance: str) -> bytes:
        """What the instance has written so far."""
        notices = [fields for name, fields in self.told if name == "output"]
        return b"".join(
            base64.b64decode(fields["data"]) for fields in notices if fields["instance"] == instance
        )

"""Random faults under load: nobody is answered by another instance, no committed state is lost.

VM processes, torpord and the proxy are killed at random moments while clients ask random instances.
Each instance has an identity and a secret in its memory, and counts its requests there. A count
goes back only where a VM process was killed while it ran, and then never behind what was committed.
FAULTS_S makes it longer, FAULTS_VMS larger; TORPOR_TEST_SEED repeats its choices.
"""

import http.client
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.guest_http import ANSWERING
from tests.images.standins import add_root
from tests.server import Server
from torpor.images.store import ImageStore

pytestmark = pytest.mark.kvm

SECONDS = float(os.environ.get("FAULTS_S", "20"))
VMS = int(os.environ.get("FAULTS_VMS", "12"))
SEED = int(os.environ.get("TORPOR_TEST_SEED", str(random.randrange(1 << 31))))
CLIENTS = 4
REFUSED_S = 0.05
PAUSE_S = 0.4
"""Between two faults, on average."""
PROGRAM = (
    ANSWERING
    + """
import json
from urllib.parse import urlsplit
secret, count = None, 0
class Handler(Answering):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global secret, count
        count += 1
        secret = secret or urlsplit(self.path).query
        identity = json.load(open("/run/torpor/instance"))
        body = json.dumps({"uuid": identity["uuid"], "secret": secret, "count": count}).encode()
        self.answer(body)
ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever(poll_interval=None)
"""
)


@dataclass
class Counter:
    """An instance, and what is known of its count. One request at a time is under way."""

    name: str
    uuid: str
    secret: str
    last: int = 0
    doubt: int = 0
    """Requests since then of which is not known whether they were counted."""
    committed: int = 0
    """A count that is durable for sure."""
    fallbacks: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Checker:
    """Asks instances, and judges what they answer."""

    def __init__(self, server: Server, counters: list[Counter]) -> None:
        self.server = server
        self.counters = counters
        self.wrong: list[str] = []
        self.answers = 0
        self.refused = 0
        self.vm_kills = 0
        """Counted before each."""

    def ask(self, counter: Counter, *, settle: bool) -> None:
        """One request; with `settle` waits for the standby behind it."""
        with counter.lock:
            kills = self.vm_kills
            try:
                status, body = self.server.get(f"{counter.name}.localhost", f"/?{counter.secret}")
            except (OSError, http.client.HTTPException):
                status, body = 0, b""
            if status != 200:
                self.refused += 1
                counter.doubt += 1
                time.sleep(REFUSED_S)
                return
            self.answers += 1
            self._judge(counter, json.loads(body))
            if settle and self._sleeps(counter) and self.vm_kills == kills:
                counter.committed = counter.last

    def _judge(self, counter: Counter, answer: dict[str, object]) -> None:
        if (answer["uuid"], answer["secret"]) != (counter.uuid, counter.secret):
            # One that has fallen back behind its first request has no secret yet, and takes this.
            self.wrong.append(f"{counter.name} {counter.uuid} {counter.secret}: {answer}")
        count, most = answer["count"], counter.last + 1 + counter.doubt
        assert isinstance(count, int)
        if count <= counter.last:
            counter.fallbacks += 1
        if not counter.committed < count <= most:
            self.wrong.append(f"{counter.name}: {count} is not {counter.committed + 1} to {most}")
        counter.last, counter.doubt = count, 0

    def _sleeps(self, counter: Counter) -> bool:
        ends_s = time.monotonic() + 5
        while time.monotonic() < ends_s:
            try:
                if self.server.state(counter.name) == "standby":
                    return True
            except (OSError, KeyError, ValueError, http.client.HTTPException):
                pass  # torpord is being started
            time.sleep(0.05)
        return False

    def work(self, seed: int, until: Callable[[], bool]) -> None:
        choice = random.Random(seed)
        while not until():
            self.ask(choice.choice(self.counters), settle=choice.random() < 0.2)


class Faults:
    """What is killed, and how often."""

    def __init__(self, checker: Checker, choice: random.Random) -> None:
        self.checker = checker
        self.server = checker.server
        self.choice = choice
        self.kills = {"vm": 0, "torpord": 0, "proxy": 0}
        began_s = time.monotonic()
        self.due_s = {
            "torpord": began_s + choice.uniform(1, SECONDS / 2),
            "proxy": began_s + choice.uniform(1, SECONDS / 2),
        }
        """From when on it may be killed: whoever fails often is started again ever later."""

    def strike(self) -> None:
        """One fault, if there is what it is about."""
        now_s = time.monotonic()
        due = [what for what, due_s in self.due_s.items() if now_s >= due_s]
        what = due[0] if due else "vm"
        find = {"vm": self._vm, "torpord": self.server.torpord, "proxy": self.server.proxy}
        try:
            pid = find[what]()
        except (OSError, KeyError, ValueError, http.client.HTTPException):
            return  # it is being started
        if what == "vm":
            self.checker.vm_kills += 1
        else:
            self.due_s[what] = now_s + self.choice.uniform(12, 25)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.kills[what] += 1

    def _vm(self) -> int:
        running = self.server.api("/torpor/v1/load")["running"]
        if not running:
            raise ValueError("nothing runs now")
        return int(self.choice.choice(running)["pid"])


def make(server: Server) -> list[Counter]:
    """Instances of one configuration, all started: some asleep, most in a while."""

    def spec(number: int) -> dict[str, object]:
        return {
            "name": f"n{number}",
            "image": "counter",
            "memory_mb": 128,
            "service_group": {
                "services": [{"port": 80, "destination_port": 8080}],
                "domains": [{"name": f"n{number}"}],
            },
            "scale_to_zero": {
                "policy": "on",
                "stateful": True,
                "cooldown_time_ms": (1, 50, 1000)[number % 3],
            },
        }

    made = server.api("/v1/instances", [spec(n) for n in range(VMS)], "POST")["instances"]
    server.api("/torpor/v1/prepare", [{"name": "n0"}], "POST")
    for number in range(VMS):
        server.api("/v1/instances/start", [{"name": f"n{number}"}], "PUT")
        if number == 0:
            server.wait_for("n0", "running")
    return [
        Counter(f"n{number}", one["uuid"], f"secret-{SEED}-{number}")
        for number, one in enumerate(made)
    ]


def test_no_fault_mixes_instances_or_loses_what_was_committed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), "python", "counter", ("python3", "-c", PROGRAM), ("8080",))
    choice = random.Random(SEED)
    with Server(data) as server:
        checker = Checker(server, make(server))
        for counter in checker.counters:
            # From here on each has a secret, and a committed state.
            checker.ask(counter, settle=False)
            server.api("/v1/instances/suspend", [{"name": counter.name}], "PUT")
            server.wait_for(counter.name, "standby")
            counter.committed = counter.last
        assert [counter.last for counter in checker.counters] == [1] * VMS
        faults = Faults(checker, choice)
        ends_s = time.monotonic() + SECONDS
        over = threading.Event()
        threads = [
            threading.Thread(target=checker.work, args=(SEED + number, over.is_set))
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            while time.monotonic() < ends_s:
                time.sleep(choice.uniform(0, 2 * PAUSE_S))
                faults.strike()
        finally:
            over.set()
            for thread in threads:
                thread.join()
        server.wait_for_torpord(other_than=0)
        print(f"seed {SEED}: {checker.answers} answers, {checker.refused} refused, {faults.kills}")
        assert checker.wrong == [], f"seed {SEED}"
        fallbacks = sum(counter.fallbacks for counter in checker.counters)
        assert fallbacks <= faults.kills["vm"], f"seed {SEED}: more than VM processes were killed"
        assert checker.answers > VMS
        assert all(faults.kills.values()), f"seed {SEED}: {faults.kills}"
        for counter in checker.counters:
            ends_s = time.monotonic() + 120
            counter.doubt += 1
            while counter.doubt:
                checker.ask(counter, settle=False)
                assert time.monotonic() < ends_s, f"seed {SEED}: {counter.name} does not answer"
        assert checker.wrong == [], f"seed {SEED}"

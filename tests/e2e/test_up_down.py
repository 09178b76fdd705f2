"""`torpor up` and `torpor down` as processes: what they say, what they refuse, what they leave."""

import http.client
import os
import shlex
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.guest_http import ANSWERING
from tests.harness import TORPOR, Result, run_command
from tests.images.standins import add_root
from tests.server import TIMEOUT_S, Server, free_port, serving_spec
from torpor.bench.meters import processes_of
from torpor.images.store import ImageStore
from torpor.locks import SUPERVISOR, TORPORD, holder

pytestmark = pytest.mark.kvm
PROGRAM = (
    ANSWERING
    + """
class Handler(Answering):
    def do_GET(self):
        self.answer(b"here")
ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
)


@dataclass
class Place:
    """A data directory, and where its server listens. All processes there are known by it."""

    data: Path
    ports: dict[str, int] = field(
        default_factory=lambda: {name: free_port() for name in ("listen", "proxy", "proxy-tls")}
    )

    def __post_init__(self) -> None:
        self.data.mkdir(mode=0o700)

    @property
    def env(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("UKC_")}
        return {**clean, "TORPOR_DATA": str(self.data)}

    def command(self, *words: str) -> list[str | Path]:
        if words[0] == "up":
            addresses = [(f"--{name}", f"127.0.0.1:{port}") for name, port in self.ports.items()]
            words = (*words, *(word for pair in addresses for word in pair))
        return [TORPOR, *words]

    def torpor(self, *words: str, status: int = 0, **env: str) -> Result:
        done = run_command(self.command(*words), env={**self.env, **env})
        assert done.status == status, f"{words}: {done}"
        return done

    def lines(self) -> list[str]:
        """What `up` says."""
        return [
            f"api http://127.0.0.1:{self.ports['listen']}",
            f"proxy http://127.0.0.1:{self.ports['proxy']}",
            f"proxy-tls https://127.0.0.1:{self.ports['proxy-tls']}",
        ]

    def left(self) -> list[str]:
        """Names of processes that belong to it."""
        parts = processes_of(self.data, holder(self.data / TORPORD))
        found = [one for one in (parts.torpord, parts.proxy, *parts.vms) if one is not None]
        supervisor = holder(self.data / SUPERVISOR)
        return [one.name for one in found] + ([] if supervisor is None else ["supervisor"])

    def oom_scores(self) -> dict[str, set[int]]:
        """Whom the kernel ends first where there is no memory, by the processes' names."""
        parts = processes_of(self.data, holder(self.data / TORPORD))
        found: dict[str, set[int]] = {}
        for one in (parts.torpord, parts.proxy, *parts.vms):
            assert one is not None
            found.setdefault(one.name, set()).add(oom_score(one.pid))
        return found

    def end(self) -> None:
        """Whatever a test has left."""
        run_command(self.command("down", "--now"), env=self.env)


def oom_score(process: "int | str") -> int:
    return int(Path(f"/proc/{process}/oom_score_adj").read_text())


def may_lower_oom_scores() -> bool:
    """CAP_SYS_RESOURCE, of capabilities(7)."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) & 1 << 24)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "data")
    yield place
    place.end()


def accepts(place: Place) -> None:
    """All three addresses answer."""
    for name in ("listen", "proxy"):
        connection = http.client.HTTPConnection("127.0.0.1", place.ports[name], timeout=TIMEOUT_S)
        connection.request("GET", "/")
        assert connection.getresponse().status in (401, 404)
        connection.close()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = ("127.0.0.1", place.ports["proxy-tls"])
    with socket.create_connection(address, TIMEOUT_S) as plain, context.wrap_socket(plain):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground(place: Place, number: signal.Signals) -> None:
    with subprocess.Popen(
        place.command("up", "--foreground"), stdout=subprocess.PIPE, env=place.env, text=True
    ) as serving:
        assert serving.stdout is not None
        assert sorted(serving.stdout.readline().rstrip() for _ in range(3)) == place.lines()
        accepts(place)
        again = place.torpor("up", status=125).stderr.decode()
        assert f"a server runs already on {place.data} (process {serving.pid})" in again
        serving.send_signal(number)
        assert serving.wait(TIMEOUT_S) == 0
        assert serving.stdout.read() == ""
    assert place.left() == []


def test_down_ends_one_in_the_foreground(place: Place) -> None:
    with subprocess.Popen(
        place.command("up", "--foreground"), stdout=subprocess.PIPE, env=place.env, text=True
    ) as serving:
        assert serving.stdout is not None
        for _ in range(3):
            serving.stdout.readline()
        place.torpor("down")
        assert serving.wait(TIMEOUT_S) == 0
    assert place.left() == []


@pytest.mark.parametrize("flags", [(), ("--foreground",)], ids=["background", "foreground"])
@pytest.mark.parametrize("name", ["listen", "proxy", "proxy-tls"])
def test_an_address_that_is_taken(place: Place, name: str, flags: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", place.ports[name]))
        taken.listen()
        refused = place.torpor("up", *flags, status=125).stderr.decode()
    assert f"127.0.0.1:{place.ports[name]}: Address already in use" in refused
    assert f"--{name}" in refused, "the remedy"
    assert place.left() == []
    assert place.torpor("up").stdout.decode().splitlines() == place.lines()


def test_an_address_of_version_6_and_a_long_path(tmp_path: Path) -> None:
    place = Place(tmp_path / "x".ljust(150, "x"))
    port = free_port()
    flags = ("--listen", f"[::1]:{port}", "--proxy", "[::1]:0", "--proxy-tls", "")
    try:
        done = run_command([TORPOR, "up", *flags], env=place.env)
        assert done.status == 0, done
        assert done.stdout.startswith(f"api http://[::1]:{port}\nproxy http://[::1]:".encode())
        assert b"proxy: connected" in place.torpor("status").stdout
        place.torpor("down")
        assert place.left() == []
    finally:
        place.end()


@pytest.mark.parametrize("size_kb", [200, 300])
def test_a_disk_that_is_full_from_the_beginning(place: Place, size_kb: int) -> None:
    """For the tables, or for the first rows in them."""
    options = ["-t", "tmpfs", "-o", f"size={size_kb}k,mode=700"]
    mounted = run_command(["mount", *options, "tmpfs", place.data])
    if mounted.status != 0:
        pytest.skip(f"NO FULL DISK TRIED: a small tmpfs cannot be mounted: {mounted}")
    try:
        refused = place.torpor("up", status=125).stderr.decode()
        assert f"no room in {place.data} to begin with: make some" in refused
        assert place.left() == []
        assert run_command(["mount", "-o", "remount,size=64m", place.data]).status == 0
        place.torpor("up")
        place.torpor("down")
    finally:
        run_command(["umount", "--lazy", place.data])


def test_of_several_at_once_one_serves(place: Place) -> None:
    starting = [
        subprocess.Popen(
            place.command("up"), env=place.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    said = [one.communicate(timeout=TIMEOUT_S) for one in starting]
    assert sorted(one.returncode for one in starting) == [0, 125, 125, 125], said
    assert all(b"a server runs already on" in err for out, err in said if not out)
    accepts(place)
    place.torpor("down")
    assert place.left() == []


@pytest.mark.parametrize("after_s", [0.05, 0.3])
def test_an_up_that_is_broken_off_leaves_nothing(place: Place, after_s: float) -> None:
    with subprocess.Popen(place.command("up"), env=place.env, stderr=subprocess.DEVNULL) as up:
        time.sleep(after_s)
        up.send_signal(signal.SIGINT)
        ended = up.wait(TIMEOUT_S)
    if ended != 0:  # it was quick enough otherwise
        assert place.left() == []
    place.end()
    assert place.left() == []


def test_an_up_that_serves_is_not_broken_off(place: Place) -> None:
    with subprocess.Popen(place.command("up"), env=place.env, stdout=subprocess.PIPE) as up:
        assert up.stdout is not None
        up.stdout.readline()
        up.send_signal(signal.SIGINT)
        assert up.wait(TIMEOUT_S) == 0
    accepts(place)


def test_down_ends_what_cannot_come_back(place: Place) -> None:
    """torpord has died, and another program has its port."""
    place.torpor("up")
    with ExitStack() as stack:
        taken = stack.enter_context(socket.socket())
        pid = holder(place.data / TORPORD)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        ends_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                taken.bind(("127.0.0.1", place.ports["listen"]))
                break
            except OSError:
                assert time.monotonic() < ends_s
        # Nobody listens there, and nobody else can.
        assert "a server runs already" in place.torpor("up", status=125).stderr.decode()
        refused = place.torpor("down", status=125).stderr.decode()
        assert "torpord does not answer" in refused
        assert "`torpor down --now`" in refused
        place.torpor("down", "--now")
    assert place.left() == []
    place.torpor("up")


@pytest.mark.parametrize("killed", [("supervisor",), ("supervisor", "torpord")])
def test_down_ends_what_is_left_of_a_server(place: Place, killed: tuple[str, ...]) -> None:
    place.torpor("up")
    for name in killed:
        pid = holder(place.data / (SUPERVISOR if name == "supervisor" else TORPORD))
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    assert "a server runs already" in place.torpor("up", status=125).stderr.decode()
    place.torpor("down", *(("--now",) if "torpord" in killed else ()))
    # With a request in flight the proxy took its time, say: it is over when the command is.
    place.torpor("up")


def test_down_is_about_the_data_directory(place: Place) -> None:
    """Whatever server the environment names for all else."""
    place.torpor("up")
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.setblocking(False)
        metro = f"http://127.0.0.1:{trap.getsockname()[1]}"
        place.torpor("down", UKC_METRO=metro, UKC_TOKEN="another's")  # noqa: S106 -- nobody's
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert place.left() == []


class Load:
    """Requests to sleeping instances, for as long as anybody answers."""

    def __init__(self, server: Server, names: list[str]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(server, name)) for name in names]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, server: Server, name: str) -> None:
        while not self._stop.is_set():
            try:
                server.get(f"{name}.localhost")
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)


def test_down_under_requests_leaves_no_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go on until the proxy ends: nobody is woken behind what puts all away."""
    place = Place(tmp_path / "data")
    monkeypatch.setenv("TORPOR_DATA", str(place.data))
    add_root(ImageStore(place.data), "python", "here", ("python3", "-c", PROGRAM), ("8080",))
    names = [f"n{number}" for number in range(6)]
    with Server(place.data) as server:
        policy = {"policy": "on", "stateful": True, "cooldown_time_ms": 20}
        specs = [serving_spec(name, "here", policy) for name in names]
        server.api("/v1/instances", specs, "POST")
        for name in names:
            server.wait_for(name, "standby")
        scores = place.oom_scores()
        lowest = -900 if may_lower_oom_scores() else oom_score("self")
        assert scores.pop("torpord") == scores.pop("torpor-proxy") == {lowest}
        assert scores == {"torpor-vmm": {1000}}
        for _ in range(5):
            with Load(server, names):
                time.sleep(0.5)
                server.down()
                assert place.left() == []
            server.up()
            assert {server.state(name) for name in names} == {"standby"}


def test_what_ran_at_down_goes_on_behind_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory of its own too, and without a request where it never sleeps."""
    place = Place(tmp_path / "data")
    monkeypatch.setenv("TORPOR_DATA", str(place.data))
    add_root(ImageStore(place.data), "python", "here", ("python3", "-c", PROGRAM), ("8080",))
    policies = {
        "sleeps": {"policy": "on", "stateful": False, "cooldown_time_ms": 600_000},
        "awake": {"policy": "off", "stateful": False},
        "kept": {"policy": "off", "stateful": True},
        "stopped": {"policy": "off", "stateful": False},
    }
    with Server(place.data) as server:
        specs = [serving_spec(name, "here", policy) for name, policy in policies.items()]
        server.api("/v1/instances", specs, "POST")
        for name in policies:
            server.wait_for(name, "running")
        server.api("/v1/instances/stop", [{"name": "stopped"}], "PUT")
        server.wait_for("stopped", "stopped")
        server.down()
        assert place.left() == []
        server.up()
        for name in ("awake", "kept"):
            server.wait_for(name, "running")
        assert server.state("sleeps") == "standby"
        for name in ("sleeps", "awake", "kept"):
            assert server.get(f"{name}.localhost") == (200, b"here"), name
        assert server.get("stopped.localhost")[0] == 503
        assert server.state("stopped") == "stopped"


@dataclass
class Unit:
    """A service of systemd's, as far as it says how its process is started, and started again."""

    command: list[str]
    ends_with: set[int]
    """Statuses behind which it is not started again though it is `Restart=always`."""

    @classmethod
    def read(cls, path: Path) -> "Unit":
        lines = [line.partition("=")[::2] for line in path.read_text().splitlines()]
        values = {name: value for name, value in lines if value}
        assert values["Restart"] == "always"
        ends_with = {int(word) for word in values["RestartPreventExitStatus"].split()}
        return cls(shlex.split(values["ExecStart"]), ends_with)


def test_down_is_the_end_under_systemd(place: Place, tmp_path: Path) -> None:
    """Its units in the hands of whoever does as they say; a kill is none."""
    (place.data / "config.toml").write_text(
        f'[server]\nlisten = "127.0.0.1:{place.ports["listen"]}"\n'
        f'[proxy]\nhttp = "127.0.0.1:{place.ports["proxy"]}"\n'
        f'tls = "127.0.0.1:{place.ports["proxy-tls"]}"\n'
    )
    place.torpor("units", str(tmp_path))
    units = [Unit.read(tmp_path / name) for name in ("torpor-proxy.service", "torpord.service")]
    with ExitStack() as stack:
        parts = []
        for unit in units:
            part = stack.enter_context(subprocess.Popen(unit.command, stdout=subprocess.PIPE))
            parts.append(part)
            assert part.stdout is not None
            part.stdout.readline()
        accepts(place)
        place.torpor("down")
        ended = [part.wait(TIMEOUT_S) for part in parts]
    for unit, status in zip(units, ended, strict=True):
        assert status in unit.ends_with
        assert -signal.SIGKILL not in unit.ends_with
    assert place.left() == []

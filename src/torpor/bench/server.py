"""The server that is measured: one of the benchmark's own, or one that runs already.

Everything goes through the REST API and the proxy, as any client's requests do.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from torpor.bench import meters
from torpor.bench.http import Answer, Client
from torpor.cli.server import URL_FILE
from torpor.errors import TorporError
from torpor.locks import TORPORD, holder

DEFAULT_PROXY = "127.0.0.1:8080"
PROXY_FILE = "run/bench-proxy"
"""Where a benchmark notes the address of the proxy of its own server."""
PUBLIC_PORT = 80
"""The service port of every instance: plain HTTP."""
BUSY_STATES = frozenset({"starting", "running", "draining", "stopping"})


class WrongServerError(TorporError):
    """The server answered a request of the benchmark with an error."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server is."""

    api: str
    token: str
    proxy: str
    """HOST:PORT of its plain HTTP port."""
    data_dir: Path | None
    """None if it is not on this machine, or belongs to somebody else."""

    def parts(self) -> meters.Parts:
        """Its processes as they are now."""
        if self.data_dir is None:
            return meters.Parts(None, None, ())
        return meters.processes_of(self.data_dir, holder(self.data_dir / TORPORD))

    @property
    def suffix(self) -> str:
        """Domain suffix that instances' host names get."""
        return "localhost"


@contextmanager
def own_server(data_dir: Path, config: str = "") -> Iterator[Target]:
    """A server on a data directory of its own, until the block ends; one that runs is taken over.

    `config` becomes its config.toml. However the block ends, instances that run are put into
    standby first.
    """
    command = [sys.executable, "-m", "torpor", "--data", str(data_dir)]
    # By this its processes are known among all others of the machine.
    environment = {**os.environ, "TORPOR_DATA": str(data_dir)}
    if holder(data_dir / TORPORD) is None:
        (data_dir / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / "config.toml").write_text(config)
        # Not port 0: a torpord or proxy that is killed comes back where it was.
        api, proxy = free_address(), free_address()
        (data_dir / PROXY_FILE).write_text(proxy)
        addresses = ["--listen", api, "--proxy", proxy, "--proxy-tls", ""]
        _command([*command, "up", *addresses], environment)
    try:
        yield target_of(data_dir)
    finally:
        _command([*command, "down"], environment)


def free_address() -> str:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def running_server(api: str, proxy: str | None, data_dir: Path) -> Iterator[Target]:
    """A server that somebody else runs. Raises TorporError if there is no token for it.

    If it is the one of `data_dir`, its token is taken from there, and its costs are measured.
    """
    local = None
    with contextlib.suppress(TorporError):
        local = target_of(data_dir, proxy)
    if local is not None and local.api == api.rstrip("/"):
        yield local
        return
    token = os.environ.get("UKC_TOKEN", "")
    if not token:
        raise TorporError("--server names a server: give its token in UKC_TOKEN")
    yield Target(api.rstrip("/"), token, proxy or DEFAULT_PROXY, None)


def target_of(data_dir: Path, proxy: str | None = None) -> Target:
    """The server that runs on a data directory of this machine. Raises TorporError."""
    try:
        return Target(
            (data_dir / URL_FILE).read_text().strip(),
            (data_dir / "token").read_text().strip(),
            proxy or (data_dir / PROXY_FILE).read_text().strip(),
            data_dir,
        )
    except FileNotFoundError as error:
        raise TorporError(f"no server runs on {data_dir}: {error.filename} is missing") from error


def _command(words: Sequence[str], environment: dict[str, str]) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise TorporError(f"{' '.join(words[3:])}: {said[-1].removeprefix('torpor: ')}")


class Made(msgspec.Struct):
    """What the answer to a creation says of one instance."""

    status: str
    uuid: str = ""
    name: str = ""
    message: str = ""
    error: int = 0


class Listed(msgspec.Struct):
    """What a list says of one instance."""

    status: str
    uuid: str = ""
    name: str = ""
    state: str = ""
    start_count: int = 0
    stop_reason: int | None = None


class _MadeData(msgspec.Struct):
    instances: list[Made] = []


class _MadeEnvelope(msgspec.Struct):
    status: str
    message: str = ""
    data: _MadeData = msgspec.field(default_factory=_MadeData)


class _ListedData(msgspec.Struct):
    instances: list[Listed] = []


class _ListedEnvelope(msgspec.Struct):
    status: str
    message: str = ""
    data: _ListedData = msgspec.field(default_factory=_ListedData)


_made = msgspec.json.Decoder(_MadeEnvelope)
_listed = msgspec.json.Decoder(_ListedEnvelope)


@dataclass(frozen=True, slots=True)
class Shape:
    """What every instance of a run is."""

    image: str
    port: int
    """Where its program listens."""
    memory_mb: int = 256
    cooldown_ms: int = 1000
    policy: str = "on"
    restart_policy: str = "never"

    def spec(self, name: str, env: dict[str, str] | None = None) -> dict[str, object]:
        """The body of one creation: an instance with a service of its own, started at once."""
        return {
            "name": name,
            "image": self.image,
            "memory_mb": self.memory_mb,
            "autostart": True,
            "restart_policy": self.restart_policy,
            "env": env or {},
            "service_group": {
                "services": [
                    {"port": PUBLIC_PORT, "destination_port": self.port, "handlers": ["http"]}
                ],
                "domains": [{"name": name}],
            },
            "scale_to_zero": self.scale_to_zero(self.cooldown_ms),
        }

    def scale_to_zero(self, cooldown_ms: int) -> dict[str, object]:
        """When an instance sleeps, as the API has it, with that cool-down."""
        return {"policy": self.policy, "stateful": True, "cooldown_time_ms": cooldown_ms}


class Api:
    """The operations of the REST API that benchmarks use."""

    def __init__(self, target: Target) -> None:
        address = urlsplit(target.api)
        assert address.hostname is not None  # noqa: S101 -- torpord's own URL
        self._http = Client(
            address.hostname,
            address.port or 80,
            limit=16,
            headers=f"Authorization: Bearer {target.token}\r\n",
            timeout_s=600,
        )

    async def create(self, specs: Sequence[dict[str, object]]) -> list[Made]:
        """Makes and starts instances by one request."""
        answer = await self._http.request("POST", "/v1/instances", msgspec.json.encode(specs))
        return _made.decode(_checked(answer)).data.instances

    async def named(self, names: Sequence[str]) -> list[Listed]:
        """Instances by their names; those that there are not have the status `error`."""
        body = msgspec.json.encode([{"name": name} for name in names])
        answer = await self._http.request("GET", "/v1/instances?details=false", body)
        return _listed.decode(_checked(answer)).data.instances

    async def page(self, count: int, start: str = "") -> list[Listed]:
        """A page of all instances, oldest first, from the uuid `start` on."""
        more = f"&from={start}" if start else ""
        answer = await self._http.get(f"/v1/instances?count={count}{more}")
        return _listed.decode(_checked(answer)).data.instances

    async def delete(self, uuids: Sequence[str]) -> None:
        """Removes instances."""
        body = msgspec.json.encode([{"uuid": uuid} for uuid in uuids])
        _checked(await self._http.request("DELETE", "/v1/instances", body))

    async def start(self, uuids: Sequence[str]) -> None:
        """Starts instances; those that run, run on."""
        body = msgspec.json.encode([{"uuid": uuid} for uuid in uuids])
        _checked(await self._http.request("PUT", "/v1/instances/start", body))

    async def change(self, names: Sequence[str], prop: str, value: object) -> None:
        """Sets a property of instances; where it has to, that waits until they stop."""
        changes = [{"name": name, "prop": prop, "op": "set", "value": value} for name in names]
        body = msgspec.json.encode(changes)
        answer = _checked(await self._http.request("PATCH", "/v1/instances", body))
        if json.loads(answer)["status"] != "success":
            raise WrongServerError(f"the server answered {answer[:300].decode(errors='replace')}")

    async def counts(self) -> dict[str, int]:
        """How many instances there are in each state."""
        answer = await self._http.get("/torpor/v1/status")
        counts = json.loads(_checked(answer))["data"]["counts"].get("instance", {})
        return {str(state): int(number) for state, number in counts.items() if number}

    async def wakes(self) -> int:
        """How many wakes the proxy has asked for since it was started."""
        load = await self.get("/torpor/v1/load")
        if not load["proxy"]:
            raise WrongServerError("the proxy does not answer torpord, so wakes cannot be counted")
        return int(str(load["wakes"]))

    async def get(self, path: str) -> dict[str, object]:
        """The data of any other operation."""
        return dict(json.loads(_checked(await self._http.get(path)))["data"])

    async def set_quotas(self, quotas: dict[str, int]) -> None:
        """Quotas of the server's first user."""
        body = msgspec.json.encode({"user": "default", "quotas": quotas})
        _checked(await self._http.request("PUT", "/torpor/v1/quotas", body))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()


def _checked(answer: Answer) -> bytes:
    if answer.status != 200:
        text = answer.body[:300].decode(errors="replace")
        raise WrongServerError(f"the server answered {answer.status}: {text}")
    return answer.body

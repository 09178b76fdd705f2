"""A whole server for tests and demo: torpord and proxy, started as a person does."""

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.harness import TORPOR

TIMEOUT_S = 120.0
LONG_S = 1800.0
"""For what makes base images."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def serving_spec(
    name: str, image: str, scale_to_zero: dict[str, Any], *, memory_mb: int = 128
) -> dict[str, Any]:
    """Of an instance that starts at once, and is reached by its name at the proxy's plain port."""
    return {
        "name": name,
        "image": image,
        "memory_mb": memory_mb,
        "autostart": True,
        "service_group": {
            "services": [{"port": 80, "destination_port": 8080}],
            "domains": [{"name": name}],
        },
        "scale_to_zero": scale_to_zero,
    }


@dataclass
class Server:
    """A server on a data directory, up while the `with` block lasts."""

    data: Path
    proxy_port: int = 0
    tls_port: int = 0
    api_port: int = 0

    def __enter__(self) -> Self:
        self.proxy_port, self.tls_port, self.api_port = free_port(), free_port(), free_port()
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> str:
        """`torpor up`: what it says."""
        addresses = ["--listen", f"127.0.0.1:{self.api_port}"]
        addresses += ["--proxy", f"127.0.0.1:{self.proxy_port}"]
        addresses += ["--proxy-tls", f"127.0.0.1:{self.tls_port}"]
        return self.torpor("up", *addresses)

    def down(self) -> None:
        """`torpor down`, and the end of what it leaves."""
        self.torpor("down")

    def torpor(self, *words: str, progress: bool = False) -> str:
        """A command; its output. With `progress` it may take long, and says what it does."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("UKC_")}
        command: list[str | Path] = [TORPOR, "--data", self.data, *words]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=None if progress else subprocess.PIPE,
            text=True,
            check=False,
            timeout=LONG_S if progress else TIMEOUT_S,
            env=clean,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def deploy(self, *words: str, progress: bool = False) -> str:
        """`torpor deploy`; the host name that leads there."""
        urls = self.torpor("deploy", *words, progress=progress).splitlines()
        (http_url,) = [url for url in urls if url.startswith("http://")]
        return http_url.removeprefix("http://").partition(":")[0]

    def get(self, host: str, path: str = "/") -> tuple[int, bytes]:
        """A request on a connection of its own: status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy_port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", path, headers={"Host": host})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get_tls(self, host: str, path: str = "/") -> tuple[int, bytes]:
        """The same over TLS, with the host in SNI; whoever's certificate it is."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        with (
            socket.create_connection(("127.0.0.1", self.tls_port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            connection.sendall(request.encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status, response.read()

    def instances(self) -> dict[str, dict[str, Any]]:
        """All instances by name."""
        listed = json.loads(self.torpor("instance", "list", "-o", "json"))
        return {one["name"]: one for one in listed}

    def api(self, path: str, body: Any = None, method: str = "GET") -> Any:
        """An operation of the API: the answer's data. Raises OSError without torpord."""
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=TIMEOUT_S)
        token = (self.data / "token").read_text().strip()
        try:
            content = None if body is None else json.dumps(body)
            json_type = "application/json"
            headers = {
                "Authorization": f"Bearer {token}",
                "Content-Type": json_type,
                "Accept": json_type,
            }
            connection.request(method, path, content, headers)
            return json.loads(connection.getresponse().read())["data"]
        finally:
            connection.close()

    def state(self, name: str) -> str:
        """The state of an instance."""
        (found,) = self.api(f"/v1/instances?name={name}&details=true")["instances"]
        return str(found["state"])

    def wait_for(self, name: str, *states: str) -> None:
        """Until an instance is in one of these states."""
        ends_s = time.monotonic() + TIMEOUT_S
        while (found := self.state(name)) not in states:
            assert time.monotonic() < ends_s, f"{name} is {found} and not {' or '.join(states)}"
            time.sleep(0.01)

    def kill_vm(self, uuid: str) -> None:
        """SIGKILL for the VM process that an instance is."""
        load = self.api("/torpor/v1/load")
        (pid,) = [vm["pid"] for vm in load["running"] if vm["uuid"] == uuid]
        os.kill(pid, signal.SIGKILL)

    def proxy(self) -> int:
        """The process id of the proxy."""
        supervisor = int((self.data / "run" / "supervisor.pid").read_text())
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        (pid,) = [
            int(child)
            for child in children
            if Path(f"/proc/{child}/comm").read_text() == "torpor-proxy\n"
        ]
        return pid

    def torpord(self) -> int:
        """The process id of the torpord that has the data directory."""
        return int((self.data / "run" / "torpord.lock").read_text())

    def wait_for_torpord(self, *, other_than: int) -> None:
        """Until another torpord answers."""
        ends_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self.api("/torpor/v1/status")
                if self.torpord() != other_than:
                    return
            except (OSError, ValueError, http.client.HTTPException):
                time.sleep(0.05)
            assert time.monotonic() < ends_s, "no torpord answers"

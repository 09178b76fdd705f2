"""Servers that nobody changed, in microVMs with a published port, under load from this machine.

Every answer is compared with what is expected. tests/e2e loads them for seconds, `make soak` for
minutes.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.test_network import exchange, nginx_argv, until_ready, vm_process_with_port
from tests.harness import native_command, run_command

Address = tuple[str, int]
TIMEOUT_S = 60.0
CLIENTS = 2


class Load:
    """Counts answers of one server's clients; the first wrong one ends them all. `lock` guards."""

    def __init__(self, seconds: float) -> None:
        self.until_s = time.monotonic() + seconds
        self.lock = threading.Lock()
        self.answers = 0
        self.wrong: str | None = None

    def goes_on(self) -> bool:
        return self.wrong is None and time.monotonic() < self.until_s

    def check(self, answer: object, expected: object) -> None:
        with self.lock:
            self.answers += 1
            if answer != expected and self.wrong is None:
                self.wrong = f"{answer!r:.300} instead of {expected!r:.300}"

    def failed(self, error: Exception) -> None:
        with self.lock:
            self.wrong = self.wrong or repr(error)


Client = Callable[[Address, Load, int], None]


@dataclass(frozen=True, slots=True)
class Server:
    """A program, how it is started, and what loads it (a client's number is its third argument)."""

    name: str
    root: str
    port: int
    argv: tuple[str, ...]
    client: Client
    ready: Callable[[Address], object]
    memory: str = "256M"
    prepare: Callable[[Address], None] | None = None
    stored_kib: Callable[[Address], int] = lambda _: 0
    """What it keeps in files, which are memory of its VM: they may grow."""


def http_ready(address: Address) -> bytes:
    answer = exchange(address, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", False)
    if not answer.startswith(b"HTTP/1.1 ") and not answer.startswith(b"HTTP/1.0 "):
        raise ConnectionResetError(f"no answer: {answer!r}")
    return answer


def echo_client(address: Address, load: Load, number: int) -> None:
    """POSTs bodies of all sizes to a server that answers `METHOD PATH LENGTH`."""
    chance = random.Random(number)
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    while load.goes_on():
        size = chance.choice((0, 1, 100, 5000, 70_000))
        path = f"/{chance.randrange(10**6)}"
        connection.request("POST", path, b"x" * size)
        response = connection.getresponse()
        load.check((response.status, response.read()), (200, f"POST {path} {size}\n".encode()))
    connection.close()


def large_body(seed: int, size: int) -> bytes:
    """What the sample servers make for `GET /SEED/SIZE`."""
    return bytes((seed + at) % 251 for at in range(251)) * (size // 251)


def echo_and_fetch_client(address: Address, load: Load, number: int) -> None:
    """As `echo_client`, and fetches bodies that the server makes."""
    chance = random.Random(number)
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    while load.goes_on():
        seed, size = chance.randrange(251), chance.choice((251, 25_100, 502_000))
        connection.request("GET", f"/{seed}/{size}")
        response = connection.getresponse()
        load.check((response.status, response.read()), (200, large_body(seed, size)))
        path = f"/{number}"
        connection.request("POST", path, b"y" * (size // 10))
        response = connection.getresponse()
        expected = f"POST {path} {size // 10}\n".encode()
        load.check((response.status, response.read()), (200, expected))
    connection.close()


def tree_client(address: Address, load: Load, number: int) -> None:
    """Files of nginx's tree, whole and in ranges, and one that is not there."""
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    chance = random.Random(number)
    large = bytes(8 << 20)

    def fetch(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()

    small = fetch("/small.html", {})
    load.check((small[0], small[1].startswith(b"root:x:0:0:")), (200, True))
    while load.goes_on():
        for _ in range(50):
            load.check(fetch("/small.html", {}), small)
        first = chance.randrange(len(large))
        last = min(len(large), first + chance.randrange(1, 300_000)) - 1
        answer = fetch("/large", {"Range": f"bytes={first}-{last}"})
        load.check(answer, (206, large[first : last + 1]))
        load.check(fetch("/missing", {})[0], 404)
    connection.close()


def passwd_client(address: Address, load: Load, _number: int) -> None:
    """A file by a new connection each time: HTTP/1.0."""
    first = b""
    while load.goes_on():
        connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
        connection.request("GET", "/passwd")
        response = connection.getresponse()
        body = response.read()
        first = first or body
        load.check((response.status, body), (200, first))
        load.check(body.startswith(b"root:x:0:0:"), True)
        connection.close()


class Redis:
    """A connection that speaks RESP."""

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address, timeout=TIMEOUT_S)
        self.file = self.socket.makefile("rb")

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def ask(self, *words: bytes) -> object:
        parts = [b"*%d\r\n" % len(words)]
        parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
        self.socket.sendall(b"".join(parts))
        return self.answer()

    def answer(self) -> object:
        line = self.file.readline().removesuffix(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind in (b"+", b"-"):
            return line
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.file.read(size + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        raise ConnectionResetError(f"no answer: {line!r}")


def redis_client(address: Address, load: Load, number: int) -> None:
    """Sets and gets; the first client also has everything saved by a fork, again and again."""
    redis, chance = Redis(address), random.Random(number)
    stored: dict[bytes, bytes] = {}
    while load.goes_on():
        for _ in range(200):
            key = b"%d:%d" % (number, chance.randrange(500))
            value = chance.randbytes(chance.choice((3, 300, 9000)))
            load.check(redis.ask(b"SET", key, value), b"+OK")
            stored[key] = value
            key = chance.choice(list(stored))
            load.check(redis.ask(b"GET", key), stored[key])
        load.check(redis.ask(b"INCRBY", b"n%d" % number, b"0"), 0)
        if number == 0:
            save_in_background(redis, load)
    redis.close()


def save_in_background(redis: Redis, load: Load) -> None:
    answer = redis.ask(b"BGSAVE")
    load.check(answer, b"+Background saving started")
    until_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until_s:
        info = redis.ask(b"INFO", b"persistence")
        if not isinstance(info, bytes):
            raise ConnectionResetError(f"no information: {info!r}")
        if b"rdb_bgsave_in_progress:0" in info:
            load.check(b"rdb_last_bgsave_status:ok" in info, True)
            return
        redis.ask(b"PING")
    raise TimeoutError("BGSAVE does not end")


def web_socket_client(address: Address, load: Load, number: int) -> None:
    """Requests as `echo_and_fetch_client`, and messages over a WebSocket that come back."""
    if number % 2:
        return echo_and_fetch_client(address, load, number)
    chance = random.Random(number)
    with socket.create_connection(address, timeout=TIMEOUT_S) as connection:
        connection.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        file = connection.makefile("rb")
        load.check(file.readline(), b"HTTP/1.1 101 Switching Protocols\r\n")
        accepted = False
        while (line := file.readline()) not in (b"\r\n", b""):
            # RFC 6455, 1.3: the answer to this key.
            accepted |= b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in line
        load.check(accepted, True)
        while load.goes_on():
            payload = chance.randbytes(chance.choice((0, 5, 125, 126, 4000, 65_535, 65_536)))
            connection.sendall(web_socket_frame(payload, chance.randbytes(4)))
            load.check(read_web_socket_frame(file.read), payload)
    return None


def web_socket_length(length: int, masked: int) -> bytes:
    if length < 126:
        return bytes([masked | length])
    if length < 1 << 16:
        return bytes([masked | 126]) + struct.pack(">H", length)
    return bytes([masked | 127]) + struct.pack(">Q", length)


def web_socket_frame(payload: bytes, mask: bytes) -> bytes:
    """A final binary frame of a client (RFC 6455, 5.2)."""
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    head = b"\x82" + web_socket_length(len(payload), 0x80) + mask
    return head + number.to_bytes(len(payload), "big")


def read_web_socket_frame(read: Callable[[int], bytes]) -> bytes:
    """The payload of a final binary frame; raises ConnectionResetError for anything else."""
    head, length = read(2)
    if head != 0x82:
        raise ConnectionResetError(f"no binary frame: {head:#x}")
    if length == 126:
        length = struct.unpack(">H", read(2))[0]
    elif length == 127:
        length = struct.unpack(">Q", read(8))[0]
    return read(length)


def postgresql_words(address: Address, *words: str) -> list[str | Path]:
    """A PostgreSQL client program of the root file system, run natively against the guest."""
    variables = [
        f"PGHOST={address[0]}",
        f"PGPORT={address[1]}",
        "PGUSER=app",
        "PGDATABASE=postgres",
    ]
    program = f"/usr/lib/postgresql/15/bin/{words[0]}"
    return native_command("applications", "env", "LC_ALL=C", *variables, program, *words[1:])


def query(address: Address, text: str) -> str:
    """What psql prints; raises ConnectionResetError where it fails."""
    words = postgresql_words(address, "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text)
    result = run_command(words, timeout_s=TIMEOUT_S * 2)
    if result.status != 0:
        raise ConnectionResetError(str(result))
    return result.stdout.decode().strip()


def pgbench(address: Address, *words: str) -> None:
    result = run_command(postgresql_words(address, "pgbench", *words), timeout_s=600)
    if result.status != 0 or b"aborted" in result.stderr:
        raise ConnectionResetError(str(result))


def postgresql_client(address: Address, load: Load, number: int) -> None:
    """pgbench's transactions, whose sums must agree; another client reads them meanwhile."""
    if number == 0:
        seconds = max(1, round(load.until_s - time.monotonic()))
        pgbench(address, "-n", "-c", "4", "-T", str(seconds))
        load.until_s = 0
        return
    sums = "(select sum({0}balance) from pgbench_{1})"
    accounts = [sums.format(*kind) for kind in (("a", "accounts"), ("t", "tellers"))]
    delta = "(select coalesce(sum(delta), 0) from pgbench_history)"
    while load.goes_on():
        same = query(address, f"select {accounts[0]} = {delta} and {accounts[1]} = {delta}")
        load.check(same, "t")


WSGI = """
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {len(body)}\\n".encode()]
"""
ASGI = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = f"{scope['method']} {scope['path']} {length}\\n".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
NODE = """
require("http").createServer((request, response) => {
    const [, seed, size] = request.url.split("/").map(Number);
    if (request.method === "GET") {
        const body = Buffer.alloc(size || 0, Buffer.from({length: 251}, (_, at) => 0)
            .map((_, at) => (seed + at) % 251));
        return response.end(body);
    }
    let length = 0;
    request.on("data", piece => { length += piece.length; });
    request.on("end", () => response.end(`${request.method} ${request.url} ${length}\\n`));
}).listen(80, "0.0.0.0");
"""
BUN = """
const pattern = seed => Uint8Array.from({length: 251}, (_, at) => (seed + at) % 251);
Bun.serve({
    port: 80, hostname: "0.0.0.0",
    async fetch(request, server) {
        const {pathname} = new URL(request.url);
        if (pathname === "/ws") return server.upgrade(request) ? undefined : new Response("no");
        if (request.method === "GET") {
            const [, seed, size] = pathname.split("/").map(Number);
            return new Response(Buffer.alloc(size || 0, pattern(seed)));
        }
        const length = (await request.arrayBuffer()).byteLength;
        return new Response(`${request.method} ${pathname} ${length}\\n`);
    },
    websocket: { message(socket, data) { socket.send(data); } },
});
"""
PHP = """<?php
$path = $_SERVER["REQUEST_URI"];
if ($_SERVER["REQUEST_METHOD"] === "GET") {
    [, $seed, $size] = array_pad(explode("/", $path), 3, 0);
    $pattern = "";
    for ($at = 0; $at < 251; $at++) $pattern .= chr(((int)$seed + $at) % 251);
    echo str_repeat($pattern, intdiv((int)$size, 251));
} else {
    echo "POST $path ", strlen(file_get_contents("php://input")), "\\n";
}
"""
POSTGRESQL = """
export PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/tmp/pg/data LC_ALL=C HOME=/tmp/pg
mkdir -p /tmp/pg && chown app /tmp/pg
run() { setpriv --reuid=1000 --regid=1000 --clear-groups -- "$@"; }
run initdb --no-locale --encoding=UTF8 --auth=trust >/dev/null || exit 1
echo 'host all all 0.0.0.0/0 trust' >>$PGDATA/pg_hba.conf
exec setpriv --reuid=1000 --regid=1000 --clear-groups -- postgres \\
    -c unix_socket_directories=/tmp/pg -c listen_addresses=0.0.0.0 -c port=5432 -c jit=off
"""
POSTGRESQL_BYTES = (
    "select pg_database_size('postgres') + (select sum(size) from pg_ls_waldir())::bigint"
)


def in_file(text: str, name: str, command: str) -> tuple[str, ...]:
    """Words that put `text` into a file of a working directory and start `command` there."""
    return ("sh", "-c", f'mkdir -p /tmp/w && cd /tmp/w && printf "%s" "$1" >{name} && {command}',
            "sh", text)  # fmt: skip


SERVERS = (
    Server("nginx", "nginx", 80, nginx_argv(), tree_client, http_ready),
    Server("redis", "redis", 6379,
           ("redis-server", "--protected-mode", "no", "--dir", "/tmp"),
           redis_client, lambda address: exchange(address, b"PING\r\nQUIT\r\n")),
    Server("gunicorn", "applications", 80,
           in_file(WSGI, "wsgi.py", "exec gunicorn --workers 3 --worker-class gthread"
                   " --bind 0.0.0.0:80 --log-level critical wsgi:app"), echo_client, http_ready),
    Server("uvicorn", "applications", 80,
           in_file(ASGI, "asgi.py", "exec python3 -m uvicorn --host 0.0.0.0 --port 80"
                   " --log-level critical asgi:app"), echo_client, http_ready),
    Server("python-http-server", "python", 80,
           ("python3", "-m", "http.server", "80", "--directory", "/etc"),
           passwd_client, http_ready),
    Server("node", "node", 80, ("node", "-e", NODE), echo_and_fetch_client, http_ready, "512M"),
    Server("bun", "bun", 80, in_file(BUN, "server.ts", "exec bun server.ts"),
           web_socket_client, http_ready, "512M"),
    Server("go", "programs", 80, ("web_server",), echo_and_fetch_client, http_ready),
    Server("php", "php", 80, in_file(PHP, "index.php", "exec php -S 0.0.0.0:80 -t . index.php"),
           echo_and_fetch_client, http_ready),
    Server("postgresql", "applications", 5432, ("bash", "-c", POSTGRESQL), postgresql_client,
           lambda address: query(address, "select 1"), "512M",
           lambda address: pgbench(address, "-i", "-q"),
           lambda address: int(query(address, POSTGRESQL_BYTES)) >> 10),
)  # fmt: skip


def anonymous_kib(pid: int) -> int:
    """Memory of the VM process under the broker `pid` that is its own (proc(5))."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{children[0]}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


@contextmanager
def running(server: Server, *more: str) -> Iterator[tuple[Address, int]]:
    """The server in a microVM, once it answers: its address and the id of the VM's broker.

    `more` are options of `torpor vm run`.
    """
    options = ("--memory", server.memory, *more)
    with vm_process_with_port(server.root, server.port, *server.argv, options=options) as (
        address,
        process,
    ):
        until_ready(lambda: server.ready(address))
        if server.prepare is not None:
            server.prepare(address)
        yield address, process.pid


def put_under_load(server: Server, address: Address, seconds: float) -> int:
    """How many answers were right; raises AssertionError for a wrong one or an error."""
    load = Load(seconds)

    def work(number: int) -> None:
        try:
            server.client(address, load, number)
        except Exception as error:
            load.failed(error)

    clients = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert load.wrong is None, f"{server.name}: {load.wrong}"
    assert load.answers > 0, f"{server.name}: no answer"
    return load.answers

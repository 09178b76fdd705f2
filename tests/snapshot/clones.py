"""Which generators of random numbers repeat in clones of one template, runtime by runtime.

Every generator is used before the template is made, so that what it keeps in memory is in it, and
once in each clone.
"""

import json
import secrets
from collections import defaultdict
from pathlib import Path

from tests.rootfs.build import root_image
from tests.snapshot.vms import Sibling, Template, make_template, vm_process

PYTHON = """
import json, os, random, secrets, ssl, sys, uuid
def client_random():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    connection = context.wrap_bio(incoming, outgoing, server_hostname="example.org")
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()[11:43].hex()
def draw():
    return {
        "os.urandom": os.urandom(16).hex(),
        "secrets": secrets.token_hex(16),
        "uuid.uuid4": str(uuid.uuid4()),
        "ssl.RAND_bytes": ssl.RAND_bytes(16).hex(),
        "TLS client random": client_random(),
        "random": str(random.getrandbits(64)),
        "random.SystemRandom": str(random.SystemRandom().getrandbits(64)),
    }
draw()
os.makedirs("/run/torpor", exist_ok=True)
open("/run/torpor/ready", "w").close()
for _ in sys.stdin:
    print(json.dumps(draw()), flush=True)
"""

# Node.js and Bun have the same interfaces for these.
JAVASCRIPT = """
const fs = require("fs"), crypto = require("crypto"), tls = require("tls"), net = require("net");
const { Duplex } = require("stream");
function clientRandom() {
  return new Promise((resolve) => {
    const server = net.createServer((socket) => {
      socket.once("data", (data) => {
        resolve(data.subarray(11, 43).toString("hex"));
        socket.destroy();
        server.close();
      });
      socket.on("error", () => {});
    });
    server.listen(0, "127.0.0.1", () => {
      const port = server.address().port;
      const client = tls.connect({ port, host: "127.0.0.1", rejectUnauthorized: false });
      client.on("error", () => {});
    });
  });
}
const hex = (bytes) => Buffer.from(bytes).toString("hex");
async function draw() {
  return {
    "crypto.randomUUID": crypto.randomUUID(),
    "crypto.randomBytes": crypto.randomBytes(16).toString("hex"),
    "crypto.getRandomValues": hex(globalThis.crypto.getRandomValues(new Uint8Array(16))),
    "crypto.randomInt": String(crypto.randomInt(2 ** 47)),
    "globalThis.crypto.randomUUID": globalThis.crypto.randomUUID(),
    "TLS client random": await clientRandom(),
    "Math.random": String(Math.random()),
  };
}
draw().then(() => {
  fs.mkdirSync("/run/torpor", { recursive: true });
  process.stdin.on("data", async () => { fs.writeSync(1, JSON.stringify(await draw()) + "\\n"); });
  setTimeout(() => fs.writeFileSync("/run/torpor/ready", ""), 100);
});
"""

RUNTIMES: dict[str, tuple[str, list[str], int]] = {
    "CPython": ("python", ["python3", "-c", PYTHON], 256),
    "Go": ("programs", ["chance"], 256),
    "Node.js": ("node", ["node", "-e", JAVASCRIPT], 512),
    "Bun": ("bun", ["bun", "-e", JAVASCRIPT], 512),
}
"""Root file system, command and MiB of memory of each."""

NOT_CRYPTOGRAPHIC = frozenset(
    ["random", "Math.random", "math/rand", "math/rand, seeded", "math/rand/v2"]
)
"""Generators that nobody is promised anything of."""

REPEATING = {
    "Node.js": frozenset(["crypto.randomUUID", "crypto.randomInt", "globalThis.crypto.randomUUID"]),
    "Bun": frozenset(
        [
            "crypto.randomUUID",
            "crypto.getRandomValues",
            "crypto.randomInt",
            "globalThis.crypto.randomUUID",
        ]
    ),
}
"""Cryptographic generators that repeat if they were used before the template was made: programs of
these runtimes are not made templates of by themselves (docs/security.md)."""


async def distinct_values(directory: Path, template: Template, clones: int) -> dict[str, int]:
    """How many different values each generator gives in so many clones."""
    seen = defaultdict[str, set[str]](set)
    async with vm_process(directory) as process:
        vm = await Sibling.prepare(process, template)
        for _ in range(clones):
            await vm.wake(secrets.token_hex(16), 0)
            for name, value in json.loads(await vm.peer.ask("")).items():
                seen[name].add(value)
            await vm.sleep(1, busy=True)
        vm.peer.close()
    return {name: len(values) for name, values in seen.items()}


async def template_of(runtime: str, directory: Path) -> Template:
    """A template of the runtime's program."""
    root, argv, memory_mib = RUNTIMES[runtime]
    return await make_template(directory, root_image(root), argv, memory_mib=memory_mib)

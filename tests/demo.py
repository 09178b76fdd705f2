"""`make demo`: a Python and a Bun program in microVMs, with how long they took to start."""

import subprocess
import sys
import time
from pathlib import Path

from tests.harness import TORPOR
from tests.kvm import kvm_problem
from tests.rootfs.build import root_image

PYTHON_PROGRAM = """
import os, platform, sqlite3
db = sqlite3.connect("/tmp/demo.db")
db.execute("create table t (n integer)")
db.executemany("insert into t values (?)", [(n,) for n in range(1000)])
print("  Python", platform.python_version(), "on", platform.system(), platform.machine(),
      "host", os.uname().nodename)
print("  sqlite3 sums 1000 rows to", db.execute("select sum(n) from t").fetchone()[0])
"""
BUN_PROGRAM = """
const hello = (request) => new Response("hello from " + new URL(request.url).pathname);
const server = Bun.serve({ port: 0, fetch: hello });
const answer = await fetch(`http://127.0.0.1:${server.port}/bun`);
console.log("  Bun", Bun.version, "serves itself over loopback:", await answer.text());
process.exit(0);
"""
PROGRAMS = (
    ("a Python program", "python", "256M", ("python3", "-c", PYTHON_PROGRAM)),
    ("a Bun program", "bun", "1G", ("bun", "-e", BUN_PROGRAM)),
)
NOTHING = {"python": ("python3", "-c", "0"), "bun": ("bun", "-e", "0")}


def main() -> int:
    problem = kvm_problem()
    if problem is not None:
        print(f"demo: {problem}: this machine cannot run microVMs", file=sys.stderr)
        return 1
    for title, root, memory, argv in PROGRAMS:
        image = root_image(root)
        prefix: list[str | Path] = [
            TORPOR,
            "vm",
            "run",
            "--memory",
            memory,
            "--name",
            f"demo-{root}",
            image,
        ]
        short = " ".join(word if "\n" not in word else "'...'" for word in argv)
        print(f"\n{title}: torpor vm run --memory {memory} {image.name} {short}", flush=True)
        began = time.perf_counter()
        done = subprocess.run([*prefix, *argv], check=False, timeout=60)
        whole_ms = (time.perf_counter() - began) * 1e3
        if done.returncode != 0:
            print(f"demo: {title} ended with exit status {done.returncode}", file=sys.stderr)
            return 1
        began = time.perf_counter()
        subprocess.run([*prefix, *NOTHING[root]], check=True, timeout=60)
        empty_ms = (time.perf_counter() - began) * 1e3
        print(f"  {whole_ms:.0f} ms from command to exit; {empty_ms:.0f} ms for an empty program")
    print("\nbuild/rootfs has the root file systems; `.venv/bin/torpor vm run --help` says more.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The share of system calls that take the fast path (docs/fast-calls.md), of servers under load.

`python -m tests.bench.fast_calls [SERVER...]` prints it for each, from the end of a trace.
"""

import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.servers import SERVERS, Server, put_under_load, running

NAMES = ("bun", "node", "nginx", "redis", "go")
SECONDS = 5.0
END_LIMIT_S = 60.0
COUNTS = re.compile(r"^System calls: (\d+) fast, (\d+) trapped; (\d+) sites", re.MULTILINE)
REFUSED = re.compile(r"^ *(\d+) not rewritten: (.*)$", re.MULTILINE)
CALL = re.compile(rb"^ *\d+ +\d+\.\d+ (\w+)\(", re.MULTILINE)
TAIL_BYTES = 4096


def trace_of(server: Server, trace: Path) -> str:
    """The end of the trace of a server that was put under load and told to end."""
    with running(server, f"--trace={trace}") as (address, pid):
        put_under_load(server, address, SECONDS)
        os.kill(pid, signal.SIGTERM)
        until_s = time.monotonic() + END_LIMIT_S
        while time.monotonic() < until_s:
            with trace.open("rb") as file:
                file.seek(max(0, trace.stat().st_size - TAIL_BYTES))
                text = file.read().decode(errors="replace")
            if COUNTS.search(text):
                return text
            time.sleep(0.1)
    raise TimeoutError(f"{server.name} does not end")


def main() -> int:
    wanted = sys.argv[1:] or NAMES
    for server in SERVERS:
        if server.name not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace"
            end = trace_of(server, trace)
            calls = Counter(CALL.findall(trace.read_bytes()))
        found = COUNTS.search(end)
        assert found is not None
        fast, trapped, sites = map(int, found.groups())
        print(f"{server.name}: {fast / max(1, fast + trapped):.1%} fast of {fast + trapped} calls,")
        print(f"  {sites} sites rewritten; others:", *(f"{n} {why}," for n, why in
              REFUSED.findall(end)))  # fmt: skip
        print("  most often:", *(f"{name.decode()} {n}," for name, n in calls.most_common(8)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

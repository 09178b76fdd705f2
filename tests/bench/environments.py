"""`make bench-environments`: disk of instances that differ in one environment variable.

Each is started, asked once and put to sleep; BENCH_ENVIRONMENTS of them (1,000) for each program.
What an instance costs is its own state: what templates and warm bases take is shown apart.
Instances whose state is a template of their own cost that.
"""

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.guest_http import ANSWERING
from tests.harness import REPOSITORY
from tests.images.standins import add_root
from tests.server import Server
from torpor.bench.report import Bar, Report, refuse_debug_build
from torpor.images.store import ImageStore
from torpor.store import Page, Store

COUNT = int(os.environ.get("BENCH_ENVIRONMENTS", "1000"))
AT_ONCE = 10
PYTHON = (
    ANSWERING
    + """
import os
class Handler(Answering):
    def do_GET(self):
        body = os.environ["USER_ID"].encode()
        self.answer(body)
HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
)
BUN = "Bun.serve({port: 8080, fetch: () => new Response(process.env.USER_ID)})"
PROGRAMS = {"CPython": ("python", ("python3", "-c", PYTHON)), "Bun": ("bun", ("bun", "-e", BUN))}


def spec(image: str, number: int) -> dict[str, Any]:
    name = f"n{number}"
    return {
        "name": name,
        "image": image,
        "memory_mb": 256,
        "env": {"USER_ID": f"user-{number}"},
        "autostart": True,
        "service_group": {
            "services": [{"port": 80, "destination_port": 8080}],
            "domains": [{"name": name}],
        },
        "scale_to_zero": {"policy": "on", "stateful": True, "cooldown_time_ms": 200},
    }


def measure(report: Report, program: str, directory: Path) -> None:
    """Starts them all, and reads what they cost from the store."""
    root, command = PROGRAMS[program]
    data = directory / program
    data.mkdir(mode=0o700)
    add_root(ImageStore(data), root, root, command, ("8080",))
    with Server(data) as server:
        for first in range(0, COUNT, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, COUNT))
            specs = [spec(root, number) for number in numbers]
            for made in server.api("/v1/instances", specs, "POST")["instances"]:
                if made["status"] != "success":
                    report.wrong_answer(f"{program}: {made['name']}: {made['message']}")
            for number in numbers:
                status, body = server.get(f"n{number}.localhost")
                if (status, body) != (200, f"user-{number}".encode()):
                    report.wrong_answer(f"{program} {number}: {status} {body[:100]!r}")
        for number in range(COUNT):
            server.wait_for(f"n{number}", "standby", "stopped")
        for one in server.api("/v1/instances?state=stopped&details=true")["instances"]:
            log = server.torpor("instance", "logs", one["name"])
            report.wrong_answer(f"{program} {one['name']} is stopped: {one['stop_reason']}: {log}")
    store = Store(data)
    try:
        own: list[float] = []
        users: Counter[int] = Counter()
        sizes: dict[int, int] = {}
        for row in store.instances.page(1, "instance", Page()):
            found = store.snapshots.find(row.id)
            if found is None:
                continue
            assert found.template is not None, row.name
            users[found.template.id] += 1
            sizes[found.template.id] = found.template.size_bytes
            # One that a single instance needs is that instance's.
            alone = found.template.key is None
            own.append(found.size_bytes + (found.template.size_bytes if alone else 0))
        template_bytes = sum(sizes.values()) / len(sizes)
        report.samples(f"{program}: state of one", own, "bytes", bar=Bar(template_bytes / 10))
        report.value(f"{program}: a template", template_bytes, "bytes")
        report.value(f"{program}: templates", len(sizes), "")
        report.value(f"{program}: in all files", store.size_bytes()["upper"], "bytes")
    finally:
        store.close()


def main() -> int:
    refuse_debug_build()
    report = Report("environments")
    build = REPOSITORY / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as scratch:
        for program in sys.argv[1:] or PROGRAMS:
            measure(report, program, Path(scratch))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

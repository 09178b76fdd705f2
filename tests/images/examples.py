"""`make test-examples [EXAMPLES=NAME...]`: every sample application is built and answers as its
README says, natively and in a microVM.

The native run is in a network namespace of this process's own, so that port 8080 is free. Images
and base images stay in build/examples.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.harness import REPOSITORY, TORPOR
from tests.images.checks import CHECKS, Server
from tests.images.running import in_vm, natively
from torpor.bench.native import mount
from torpor.images import resolve

EXAMPLES = REPOSITORY / "examples"
DATA = REPOSITORY / "build" / "examples"
_INSIDE = "TORPOR_EXAMPLES_NAMESPACE"


@contextmanager
def native_server(name: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        mount("-t", "tmpfs", "tmpfs", scratch)
        try:
            with natively(resolve(name, DATA), Path(scratch)) as server:
                yield server
        finally:
            subprocess.run(["umount", "-R", "-l", scratch], check=True)


def vm_server(name: str) -> AbstractContextManager[Server]:
    return in_vm(DATA, name)


RUNNERS: dict[str, Callable[[str], AbstractContextManager[Server]]] = {
    "natively": native_server,
    "in a microVM": vm_server,
}


def main(names: list[str]) -> int:
    if os.environ.get(_INSIDE) is None:
        for name in names:
            print(f"== building {name}", flush=True)
            build: list[str | Path] = [TORPOR, "--data", DATA, "build", "-t", name, EXAMPLES / name]
            subprocess.run(build, check=True)
        os.environ[_INSIDE] = "1"
        again = [sys.executable, "-m", "tests.images.examples", *names]
        os.execvp("unshare", ["unshare", "--mount", "--net", *again])
    subprocess.run([shutil.which("ip") or "/sbin/ip", "link", "set", "lo", "up"], check=True)
    failed = 0
    for name in names:
        for how, run in RUNNERS.items():
            try:
                with run(name) as server:
                    CHECKS[name](server)
                print(f"{name} {how}: ok", flush=True)
            except Exception as error:  # every example is tried
                failed += 1
                print(f"{name} {how}: FAILED: {error!r}", flush=True)
    print(f"{len(names) * len(RUNNERS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(CHECKS)))

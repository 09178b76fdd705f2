"""The small parent process of `torpor up`, where there is no systemd: starts torpord again.

`python -m torpor.supervisor COMMAND...` runs COMMAND until it ends with status 0, or until SIGTERM
comes, which is passed on. It imports nothing that could fail or grow.
"""

import signal
import subprocess
import sys
import time

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
HEALTHY_S = 10.0


def supervise(command: list[str]) -> int:
    """Runs `command` again whenever it fails; the exit status of the last run."""
    stopping = False
    child: subprocess.Popen[bytes] | None = None

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    pause_s = FIRST_PAUSE_S
    while True:
        began_s = time.monotonic()
        child = subprocess.Popen(command)
        if stopping:
            child.terminate()
        status = child.wait()
        if stopping or status == 0:
            return status
        healthy = time.monotonic() - began_s >= HEALTHY_S
        pause_s = FIRST_PAUSE_S if healthy else min(pause_s * 2, LONGEST_PAUSE_S)
        sys.stderr.write(f"torpord ended with status {status}: again in {pause_s} s\n")
        sys.stderr.flush()
        ends_s = time.monotonic() + pause_s
        while not stopping and time.monotonic() < ends_s:
            time.sleep(min(0.1, pause_s))
        if stopping:
            return 0


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))

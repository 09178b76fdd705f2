"""torpord as it is, but that it kills who it is told to when a wake or a standby reaches a step.

The file `<data>/step` names the step and the victim: a process id, 0 for torpord itself, or -1 for
the VM process that the step is about. It is removed before the kill, so that each is done once.
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from torpor import torpord
from torpor.controller.proxy import ProxyClient, Woken
from torpor.controller.routing import Router
from torpor.controller.saved import SavedStates
from torpor.vmhost.host import Host
from torpor.vmhost.vm import RunningVm
from torpor.vmprocess import VMProcess

Judge = Callable[[tuple[Any, ...]], bool]


def _any(_: tuple[Any, ...]) -> bool:
    return True


def _is_wake(arguments: tuple[Any, ...]) -> bool:
    return isinstance(arguments[2].get("ok"), Woken)


def _is_standby(arguments: tuple[Any, ...]) -> bool:
    ok = arguments[2].get("ok")
    return isinstance(ok, dict) and ok.get("parked") is True


BEFORE, AFTER = "before", "after"
WAKE: dict[str, tuple[Any, str, str, Judge]] = {
    "wake asked for": (Router, "wake", BEFORE, _any),
    "state read": (SavedStates, "state", AFTER, _any),
    "VM process chosen": (VMProcess, "restore", BEFORE, _any),
    "link attached": (ProxyClient, "attach", AFTER, _any),
    "wake answered": (ProxyClient, "_reply", AFTER, _is_wake),
    "VM runs": (Host, "restore", AFTER, _any),
}
STANDBY: dict[str, tuple[Any, str, str, Judge]] = {
    "standby asked for": (Router, "idle", BEFORE, _any),
    "VM stopped": (VMProcess, "standby", AFTER, _any),
    "about to commit": (SavedStates, "commit", BEFORE, _any),
    "committed": (SavedStates, "commit", AFTER, _any),
    "VM released": (RunningVm, "release", AFTER, _any),
    "standby answered": (ProxyClient, "_reply", AFTER, _is_standby),
}
STEPS = WAKE | STANDBY


class Stepper:
    """Looks whether it is this step's turn."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._vm_pid = 0

    def reached(self, step: str, arguments: tuple[Any, ...]) -> None:
        if isinstance(arguments[0], VMProcess):
            self._vm_pid = arguments[0].pid
        try:
            wanted, victim = self._path.read_text().split("\n")
        except FileNotFoundError:
            return
        if wanted != step:
            return
        self._path.unlink()
        pid = {"0": os.getpid(), "-1": self._vm_pid}.get(victim, int(victim))
        os.kill(pid, signal.SIGKILL)

    def install(self, step: str) -> None:
        """Has a method tell of its step."""
        owner, name, when, judge = STEPS[step]
        method = getattr(owner, name)

        def tell(moment: str, arguments: tuple[Any, ...]) -> None:
            if moment == when and judge(arguments):
                self.reached(step, arguments)

        @wraps(method)
        def plain(*arguments: Any, **named: Any) -> Any:
            tell(BEFORE, arguments)
            result = method(*arguments, **named)
            tell(AFTER, arguments)
            return result

        @wraps(method)
        async def waiting(*arguments: Any, **named: Any) -> Any:
            tell(BEFORE, arguments)
            result = await method(*arguments, **named)
            tell(AFTER, arguments)
            return result

        is_coroutine = method.__code__.co_flags & 0x80
        setattr(owner, name, waiting if is_coroutine else plain)


if __name__ == "__main__":
    stepper = Stepper(Path(sys.argv[sys.argv.index("--data") + 1]) / "step")
    for each in STEPS:
        stepper.install(each)
    sys.exit(torpord.main())

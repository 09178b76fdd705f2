"""VM processes that an earlier torpord left: found by their sockets, adopted or seen dead."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from torpor.controller.vm import Exit
from torpor.vmhost.worker import Worker, exit_of
from torpor.vmprocess import Status, VMProcess

CONNECT_S = 0.02
"""After this it is looked whether any process has a socket that nobody listens on: one that was
just started will. Those that rested are dead by now, and the first wake waits for this.
"""
LOOKS = 300
LOOK_S = 0.1
"""So often it is looked for an answer before a process counts as one that gives none. Looks are
counted, and not seconds: a machine that stood still has cost no process its time, nor has one
that is so busy that this process hardly runs.
"""


@dataclass(frozen=True, slots=True)
class Left:
    """A VM process that answered."""

    worker: Worker
    status: Status


@dataclass(frozen=True, slots=True)
class Gone:
    """One whose VM had ended, and that only waited for somebody to tell how."""

    path: Path
    result: Exit


async def find_left(directory: Path) -> list[Left | Gone]:
    """All that have a socket there and answer; the others are dead when this returns."""
    names = [name for name in os.listdir(directory) if name.endswith(".sock")]  # noqa: PTH208 -- a few
    found = await asyncio.gather(*(_look(directory / name) for name in names))
    return [one for one in found if one is not None]


async def _look(path: Path) -> Left | Gone | None:
    process = await _connect(path)
    if process is None:
        _unlink(path)
        return None
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        process.close()
        _unlink(path)
        return None
    # The pid is that of whoever called listen(); if it answers after the pidfd was opened, it was
    # alive then, and the pidfd is its own and not that of a later process with its number.
    worker = Worker(process, path, None, pidfd)
    try:
        return Left(worker, await _status(process))
    except (OSError, TimeoutError):
        worker.kill()
        await worker.dead()
        ended = process.ended
        if ended is None or ended.reason == "lost":
            return None
        return Gone(path, exit_of(ended, killed=False))


async def _status(process: VMProcess) -> Status:
    """What it answers when it is at no earlier command. Raises OSError, TimeoutError if silent."""
    answer = asyncio.ensure_future(process.query())
    for _ in range(LOOKS):
        done, _ = await asyncio.wait({answer}, timeout=LOOK_S)
        if done and not answer.result().busy:
            return answer.result()
        if done:
            # It stores a state, say, and does not run any more behind that.
            await asyncio.sleep(LOOK_S)
            answer = asyncio.ensure_future(process.query())
    answer.cancel()
    raise TimeoutError


async def _connect(path: Path) -> VMProcess | None:
    """The process that listens there, or None when no process has the socket any more."""
    while True:
        try:
            return await VMProcess.connect(str(path), timeout_s=CONNECT_S)
        except FileNotFoundError:
            return None
        except OSError:
            if not _is_held(path):
                return None


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    """Whether some process has the socket that was bound there."""
    return any(line.endswith(path.name) for line in Path("/proc/net/unix").read_text().split("\n"))

"""One SQLite file: a writer thread that commits changes in groups, and a connection that reads.

A change is a function of the connection. The writer takes whatever changes wait, runs each in a
savepoint of one transaction, commits once, and only then answers all of them: what was answered is
on the disk (write-ahead log, synchronous=FULL: one fsync a group). One change's failure undoes that
change alone; a failure of the transaction itself fails the whole group.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar

import apsw

from torpor.store.errors import DamagedError, NoSpaceError, StoreError
from torpor.store.schema import migrate

T = TypeVar("T")
Change = Callable[[apsw.Connection], T]

MAX_GROUP = 256
"""Changes in a transaction at most, which bounds how long the first of them waits."""
CACHE_KIB = 8192
"""Of each of the two connections."""

_Entry = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Change[Any], bool]
_Answer = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Any, BaseException | None]


class Database:
    """An open database. `read` belongs to the thread that opened it, `write` to any event loop."""

    def __init__(
        self,
        path: Path,
        *,
        vfs: str | None = None,
        synchronous: Literal["FULL", "OFF"] = "FULL",
    ) -> None:
        self.path = path
        self._vfs = vfs
        self._synchronous = synchronous
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        writer = self._connect()
        try:
            migrate(writer)
        except apsw.NotADBError as error:
            raise DamagedError(f"{path}: not a database: {error}: restore a backup") from error
        self.reader = self._connect()
        self.reader.pragma("query_only", 1)
        self._thread = threading.Thread(target=self._write_loop, args=(writer,), name="store")
        self._thread.start()

    def close(self) -> None:
        """Ends after the changes that already wait are committed."""
        self._queue.put(None)
        self._thread.join()
        self.reader.close()

    def size_bytes(self) -> int:
        """Of its file and the write-ahead log."""
        log = self.path.with_name(self.path.name + "-wal")
        return sum(path.stat().st_size for path in (self.path, log) if path.exists())

    async def write(self, change: Change[T]) -> T:
        """Runs `change` in the writer's thread; returns once it is durable.

        Raises what `change` raises, and NoSpaceError when the disk is full.
        """
        return await self._enqueue(change, alone=False)

    async def between_commits(self, action: Change[T]) -> T:
        """Runs `action` in the writer's thread while no transaction is open.

        What it reads is committed, and nothing is committed until it is done.
        """
        return await self._enqueue(action, alone=True)

    async def _enqueue(self, change: Change[T], *, alone: bool) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put((loop, future, change, alone))
        return await future

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path), vfs=self._vfs)
        connection.set_busy_timeout(10_000)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", self._synchronous)
        connection.pragma("foreign_keys", 1)
        connection.pragma("cache_size", -CACHE_KIB)
        connection.pragma("journal_size_limit", 16 << 20)
        return connection

    def _write_loop(self, connection: apsw.Connection) -> None:
        ending = False
        while not ending:
            taken = [self._queue.get()]
            while len(taken) < MAX_GROUP:
                try:
                    taken.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ending = None in taken
            entries = [entry for entry in taken if entry is not None]
            for alone, group in groupby(entries, key=lambda entry: entry[3]):
                run = _run_alone if alone else _run_group
                _deliver(run(connection, list(group)))
        connection.close()


def _run_alone(connection: apsw.Connection, entries: list[_Entry]) -> list[_Answer]:
    answers: list[_Answer] = []
    for loop, future, action, _ in entries:
        try:
            answers.append((loop, future, action(connection), None))
        except Exception as error:  # noqa: BLE001, RUF100 -- it belongs to who asked
            answers.append((loop, future, None, _translate(error)))
    return answers


def _run_group(connection: apsw.Connection, entries: list[_Entry]) -> list[_Answer]:
    answers: list[_Answer] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        if len(entries) == 1:
            ((loop, future, change, _),) = entries
            answers.append((loop, future, change(connection), None))
            connection.execute("COMMIT")
            return answers
        for loop, future, change, _ in entries:
            result: Any = None
            failure: BaseException | None = None
            connection.execute("SAVEPOINT change")
            try:
                result = change(connection)
            except Exception as error:  # noqa: BLE001, RUF100 -- it belongs to who asked
                if not connection.in_transaction:
                    raise  # SQLite gave up the whole transaction
                connection.execute("ROLLBACK TO change")
                failure = _translate(error)
            connection.execute("RELEASE change")
            answers.append((loop, future, result, failure))
        connection.execute("COMMIT")
    except Exception as error:  # noqa: BLE001, RUF100 -- as above, for everybody in the group
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        failure = _translate(error)
        return [(loop, future, None, failure) for loop, future, _, _ in entries]
    return answers


def _translate(error: Exception) -> Exception:
    if isinstance(error, apsw.FullError):
        return NoSpaceError("no space left on the server's disk: free some and try again")
    if isinstance(error, apsw.IOError):
        return StoreError(f"the server's disk failed: {error}")
    if isinstance(error, apsw.Error):
        return StoreError(f"the server's database refused it: {error}")
    return error


def _deliver(answers: list[_Answer]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
    for answer in answers:
        by_loop.setdefault(answer[0], []).append(answer)
    for loop, its in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, its)
        except RuntimeError:
            continue  # the loop was closed: nobody waits any more


def _resolve(answers: list[_Answer]) -> None:
    for _, future, result, failure in answers:
        if future.done():
            continue  # whoever asked has gone; the change holds all the same
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)

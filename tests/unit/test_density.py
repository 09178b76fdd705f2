"""The density benchmark's own rules: what an answer may be, what a run remembers, what it shows."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import small_disk
from torpor.bench.audit import MARGIN_MS, Audit
from torpor.bench.counter import Counters, NoAnswerError
from torpor.bench.density import steps
from torpor.bench.density_report import rates, write
from torpor.bench.http import Client, LostError
from torpor.bench.journal import (
    Baseline,
    Final,
    Journal,
    Killed,
    Line,
    Progress,
    Settings,
    Step,
)
from torpor.bench.ledger import Ledger
from torpor.bench.loading import duration, progress
from torpor.errors import TorporError

UUID_OF = {index: str(UUID(int=index + 1)) for index in range(4)}


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now_ms = 10 * MARGIN_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


def an_audit(directory: Path, clock: Clock) -> Audit:
    ledger = Ledger(directory / f"ledger-{uuid4()}", len(UUID_OF))
    for index, uuid in UUID_OF.items():
        ledger.created(index, uuid)
    return Audit(ledger, clock)


def ask(audit: Audit, clock: Clock, index: int, count: int) -> str:
    """One counted request that is answered with `count`."""
    clock.now_ms += 2 * MARGIN_MS
    audit.asks(index, counts=True)
    return audit.answered(index, UUID_OF[index], count, counted=True)


def look(audit: Audit, clock: Clock, index: int, count: int) -> str:
    clock.now_ms += 2 * MARGIN_MS
    audit.asks(index, counts=False)
    return audit.answered(index, UUID_OF[index], count, counted=False)


def kill(audit: Audit, clock: Clock) -> None:
    clock.now_ms += 2 * MARGIN_MS
    audit.vm_killed()


def rest(audit: Audit, clock: Clock) -> None:
    clock.now_ms += 2 * MARGIN_MS
    audit.all_rest()


def test_only_the_next_count_is_right(tmp_path: Path, clock: Clock) -> None:
    audit = an_audit(tmp_path, clock)
    assert ask(audit, clock, 0, 1) == "right"
    assert ask(audit, clock, 0, 2) == "right"
    assert look(audit, clock, 0, 2) == "right"
    for wrong in (1, 2, 4):
        assert ask(an_audit(tmp_path, clock), clock, 1, wrong) == (
            "right" if wrong == 1 else "wrong"
        )
    assert look(audit, clock, 0, 1) == "wrong"
    assert look(audit, clock, 0, 3) == "wrong"
    assert len(audit.wrong) == 2


def test_another_instances_answer_is_wrong(tmp_path: Path, clock: Clock) -> None:
    audit = an_audit(tmp_path, clock)
    audit.asks(0, counts=True)
    assert audit.answered(0, UUID_OF[1], 1, counted=True) == "wrong"
    assert audit.answered(0, "no uuid", 1, counted=True) == "wrong"


def test_a_killed_vm_may_fall_back_to_what_was_durable(tmp_path: Path, clock: Clock) -> None:
    audit = an_audit(tmp_path, clock)
    ask(audit, clock, 0, 1)
    rest(audit, clock)
    ask(audit, clock, 0, 2)
    ask(audit, clock, 0, 3)
    kill(audit, clock)
    assert look(audit, clock, 0, 1) == "fell back"
    assert audit.fell_back == 1
    # What it said is known now: the old kill excuses nothing more.
    assert ask(audit, clock, 0, 2) == "right"
    assert look(audit, clock, 0, 1) == "wrong"


def test_a_killed_vm_falls_no_lower_than_what_was_durable(tmp_path: Path, clock: Clock) -> None:
    audit = an_audit(tmp_path, clock)
    ask(audit, clock, 0, 1)
    rest(audit, clock)
    ask(audit, clock, 0, 2)
    kill(audit, clock)
    assert look(audit, clock, 0, 0) == "wrong"
    # It is one finding, not one for every answer from then on.
    assert ask(audit, clock, 0, 1) == "right"
    assert len(audit.wrong) == 1


def test_a_kill_while_an_instance_slept_excuses_nothing(tmp_path: Path, clock: Clock) -> None:
    audit = an_audit(tmp_path, clock)
    ask(audit, clock, 0, 1)
    ask(audit, clock, 0, 2)
    rest(audit, clock)
    kill(audit, clock)
    assert look(audit, clock, 0, 2) == "right"
    assert look(audit, clock, 0, 1) == "wrong"


def test_a_kill_before_it_slept_excuses_also_after(tmp_path: Path, clock: Clock) -> None:
    audit = an_audit(tmp_path, clock)
    ask(audit, clock, 0, 1)
    kill(audit, clock)
    rest(audit, clock)
    assert look(audit, clock, 0, 0) == "fell back"


def test_a_lost_request_may_have_counted(tmp_path: Path, clock: Clock) -> None:
    for count, verdict in ((1, "right"), (2, "right"), (3, "wrong")):
        audit = an_audit(tmp_path, clock)
        audit.asks(0, counts=True)  # and no answer comes
        assert ask(audit, clock, 0, count) == verdict


def test_a_refused_request_has_not_counted(tmp_path: Path, clock: Clock) -> None:
    audit = an_audit(tmp_path, clock)
    audit.asks(0, counts=True)
    audit.refused(0)
    assert ask(audit, clock, 0, 2) == "wrong"
    assert ask(an_audit(tmp_path, clock), clock, 0, 1) == "right"


@given(st.lists(st.sampled_from(["ask", "look", "lost", "sleep", "kill"]), max_size=40))
def test_a_correct_server_is_never_found_wrong(
    tmp_path_factory: pytest.TempPathFactory, does: list[str]
) -> None:
    """A model: a count in memory, one on the disk; kills take the former to the latter."""
    clock = Clock()
    audit = an_audit(tmp_path_factory.mktemp("audit"), clock)
    memory = disk = 0
    for what in does:
        if what == "ask":
            memory += 1
            assert ask(audit, clock, 0, memory) != "wrong"
        elif what == "look":
            assert look(audit, clock, 0, memory) != "wrong"
        elif what == "lost":
            clock.now_ms += 2 * MARGIN_MS
            audit.asks(0, counts=True)
            memory += 1
        elif what == "sleep":
            disk = memory
            rest(audit, clock)
        else:
            kill(audit, clock)
            memory = disk
    assert audit.fell_back <= len(audit.kills_ms)


def test_a_ledger_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path, 2)
    ledger.created(1, UUID_OF[1])
    ledger.close()
    again = Ledger(path, 5)
    assert again.count == 5
    assert [again.entry(index).known for index in range(5)] == [False, True, False, False, False]
    with pytest.raises(IndexError):
        again.entry(5)
    again.close()
    assert Ledger(path, 1).count == 5
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TorporError, match="not a ledger"):
        Ledger(path, 5)


def test_a_ledger_that_has_no_room_says_so(tmp_path: Path) -> None:
    no_room = pytest.raises(TorporError, match="no room for 64000016 bytes: No space left")
    with small_disk(tmp_path / "small", 1) as disk, no_room:
        Ledger(disk / "ledger", 2_000_000)


def test_a_journal_is_read_again_without_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.settings() is None
    settings = Settings("d1", "app", "sha256:0", 8080, 256, 1000, 12.5)
    journal.begin(settings)
    lines: list[Line] = [Baseline(3, 4096), Progress(5, 10, 1.5, 10), Killed(7, "vm")]
    for line in lines:
        journal.add(line)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b'{"type":"progr')
    again = Journal(tmp_path)
    assert again.lines == lines
    assert again.settings() == settings
    again.add(Killed(8, "proxy"))
    assert Journal(tmp_path).lines == [*lines, Killed(8, "proxy")]
    path.write_bytes(b"nonsense\n")
    with pytest.raises(TorporError, match="use another --out"):
        Journal(tmp_path)


@given(st.integers(1, 3_000_000))
def test_steps_end_with_the_count(count: int) -> None:
    found = steps(count)
    assert found == sorted(set(found))
    assert found[-1] == count
    assert len(found) <= 22
    assert count < 1000 or found[0] == 1000


def test_progress_shows_the_recent_rate() -> None:
    before, after = Progress(0, 100, 10.0, 100), Progress(60_000, 600, 20.0, 600)
    assert progress([before, after], 3600) == "600 of 3,600 started, 50/s, 1m00s left"
    assert progress([before], 3600) == "100 of 3,600 started"
    assert [duration(s) for s in (5, 65, 7265)] == ["5s", "1m05s", "2h01m"]


def test_rates_leave_out_pauses() -> None:
    # A sample of a minute between the second and the third note is no part of the phase.
    notes = [Progress(1000 * at, n, n / 100, n) for at, n in ((1, 100), (2, 200), (62, 300))]
    assert rates(notes) == [(2.0, 100.0), (3.0, 100.0)]


def test_a_report_has_page_plots_and_three_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path)
    settings = Settings("d1", "bun-counter", "sha256:0", 8080, 256, 1000, 12.5)
    journal.add(Baseline(3, 1_000_000))
    journal.add(Progress(1000, 500, 1.0, 500))
    journal.add(Progress(2000, 1200, 2.0, 1200))
    for number, wake in ((1000, 1.0), (2000, 1.3)):
        disk = 1_000_000 + number * 8000
        journal.add(Step(number, [2.0, 3.0], [wake], disk, 0, 50_000_000, 1, 2, 3, 10.0, 0.01, {}))
    journal.add(Final(200, 1.0, 5000, 1, 2, 3, [], 20, 30_000_000, 0.5))
    assert write(tmp_path, settings, journal) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "density start at 2000 p50 2 ms p99 3 ms (bar 1.5: missed)",
        "density wake at 2000 1.3 ms (bar 1.5: met)",
        "density disk per instance 8 KB (bar 10: met)",
    ]
    assert "Audit: passed" in (tmp_path / "report.md").read_text()
    for name in ("start", "wake", "disk", "memory", "rate"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    journal.add(Final(200, 1.0, 5000, 1, 2, 3, ["instance 7 answered 3"], 20, 30_000_000, 0.5))
    assert write(tmp_path, settings, journal) == 1
    assert "instance 7 answered 3" in (tmp_path / "report.md").read_text()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def with_server(handler: Handler, work: Callable[[Client], Awaitable[None]]) -> None:
    """Does `work` with a client of a server whose connections `handler` deals with."""

    handlers = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        try:
            await handler(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()

    async def run() -> None:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            client = Client("127.0.0.1", server.sockets[0].getsockname()[1], limit=2, timeout_s=20)
            try:
                await work(client)
            finally:
                client.close()
                await asyncio.gather(*(task for task in handlers if task), return_exceptions=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def next_request(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def test_connections_are_kept_and_answers_whole() -> None:
    connections = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while head := await next_request(reader):
            host = head.split(b"Host: ")[1].split(b"\r\n")[0]
            writer.write(
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
            )
            await writer.drain()
            writer.write(b"\r\n3\r\nyou\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(host), host))

    async def work(client: Client) -> None:
        for name in ("a.localhost", "b.localhost"):
            answer = await client.get(host=name)
            assert (answer.status, answer.body) == (200, b"you" + name.encode())
            assert answer.took_s > 0
        assert len(connections) == 1

    with_server(handler, work)


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"not HTTP at all\r\n\r\n"]
)
def test_an_answer_that_is_not_whole_is_lost(said: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_request(reader)
        writer.write(said)

    async def work(client: Client) -> None:
        with pytest.raises(LostError):
            await client.get()

    with_server(handler, work)


def counting(answers: list[bytes]) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await next_request(reader):
            writer.write(answers.pop(0))

    return handler


def http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_counters_ask_again_when_refused_and_judge_what_comes(tmp_path: Path, clock: Clock) -> None:
    audit = an_audit(tmp_path, clock)
    own = '{"instance":"%s","count":%d}'
    answers = [
        http("503 Service Unavailable", "busy"),
        http("200 OK", own % (UUID_OF[0], 1)),
        http("200 OK", own % (UUID_OF[1], 2)),
        http("200 OK", "hello"),
        http("502 Bad Gateway", "no"),
    ]

    async def work(client: Client) -> None:
        counters = Counters(client, audit, "d1", "localhost")
        await counters.ask(0)
        assert (counters.refused, audit.wrong) == (1, [])
        await counters.ask(0)
        assert len(audit.wrong) == 1
        for problem in ("no counter", "answered 502"):
            with pytest.raises(NoAnswerError, match=problem):
                await counters.ask(0)

    with_server(counting(answers), work)

"""`torpor top`: what a server does, live in the terminal."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from torpor.cli.client import Server, run

CLEAR = "\x1b[H\x1b[J"
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The terminal's second screen without a cursor, so that the first is as it was afterwards."""
SORTS = ("cpu", "memory", "requests")


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server said at one time."""

    at_s: float
    counts: Mapping[str, int]
    load: Mapping[str, Any]
    usage: Mapping[str, Mapping[str, Any]]
    """Metrics of running instances, by uuid."""


@click.command()
@click.option(
    "--interval", "interval_s", type=click.FloatRange(0.1), default=1.0, show_default=True,
    metavar="SECONDS",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Print two samples' difference once, and end.")
@click.option("--sort", type=click.Choice(SORTS), default="cpu", show_default=True)
@click.pass_obj
def top(data: str | None, interval_s: float, once: bool, sort: str) -> None:
    """Show instances by state, what runs, wakes and the store's size, until ^C.

    Where the output is no terminal, one table is all.
    """
    live = not once and sys.stdout.isatty()

    async def work(server: Server) -> None:
        before = await _sample(server)
        while True:
            await asyncio.sleep(interval_s)
            now = await _sample(server)
            size = os.get_terminal_size() if live else os.terminal_size((100, 40))
            lines = frame(before, now, sort, size.columns, size.lines)
            click.echo((CLEAR if live else "") + "\n".join(lines), nl=not live)
            if not live:
                return
            before = now

    with contextlib.ExitStack() as screen:
        if live:
            click.echo(ENTER, nl=False)
            screen.callback(click.echo, LEAVE, nl=False)
        run(data, work)


async def _sample(server: Server) -> Sample:
    status = await server.own("GET", "/torpor/v1/status")
    load = await server.own("GET", "/torpor/v1/load")
    usage: dict[str, Any] = {}
    if load["running"]:
        headers = {"Accept": "application/json"}
        metrics = await server.own("GET", "/v1/instances/metrics", headers=headers)
        usage = {one["uuid"]: one for one in metrics["instances"] if one["status"] == "success"}
    return Sample(time.monotonic(), status["counts"].get("instance", {}), load, usage)


def frame(before: Sample, now: Sample, sort: str, columns: int, lines: int) -> list[str]:
    """The screen, from two samples; no line is wider than `columns`, and none is too much."""
    took_s = max(now.at_s - before.at_s, 1e-3)
    wakes = _since(before.load["wakes"], now.load["wakes"])
    buckets = _histogram(before.load["wake_us"], now.load["wake_us"])
    states = ", ".join(f"{number:,} {state}" for state, number in now.counts.items() if number)
    sizes = now.load["store_bytes"]
    head = [
        f"instances  {sum(now.counts.values()):,}: {states or 'none'}",
        f"wakes      {wakes / took_s:.1f}/s, {now.load['wakes']:,} in all{_latency(buckets)}"
        if now.load["proxy"]
        else "wakes      the proxy does not answer",
        f"store      {_bytes(sum(sizes.values()))}: "
        + ", ".join(f"{_bytes(size)} {name}" for name, size in sizes.items()),
        "",
    ]
    rows = sorted(_rows(before, now, took_s), key=lambda row: (-getattr(row, sort), row.name))
    table = [f"{'RUNNING':32} {'CPU %':>7} {'MEMORY':>10} {'REQ/S':>8} {'REQUESTS':>10} STATE"]
    room = max(lines - len(head) - 2, 0)
    for row in rows[:room]:
        figures = f"{row.cpu:7.1f} {_bytes(row.memory):>10} {row.rate:8.1f} {row.requests:10,}"
        table.append(f"{row.name[:32]:32} {figures} {row.state}")
    if len(rows) > room:
        table.append(f"and {len(rows) - room:,} more")
    return [line[:columns] for line in (*head, *table)]


@dataclass(frozen=True, slots=True)
class _Row:
    """A running instance."""

    name: str
    cpu: float
    """Percent of one processor."""
    memory: int
    rate: float
    requests: int
    state: str


def _rows(before: Sample, now: Sample, took_s: float) -> list[_Row]:
    earlier = {one["uuid"]: one["requests"] for one in before.load["running"]}
    rows = []
    for one in now.load["running"]:
        uuid = one["uuid"]
        usage, old = now.usage.get(uuid, {}), before.usage.get(uuid, {})
        cpu_ms = _since(old.get("cpu_time_ms", 0), usage.get("cpu_time_ms", 0))
        rows.append(
            _Row(
                name=one["name"],
                cpu=cpu_ms / took_s / 10,
                memory=usage.get("rss_bytes", 0),
                rate=_since(earlier.get(uuid, 0), one["requests"]) / took_s,
                requests=one["requests"],
                state=one["state"],
            )
        )
    return rows


def _since(before: int, now: int) -> int:
    """What was counted in between; a counter that is lower began again from 0."""
    return now - before if now >= before else now


def _histogram(before: Sequence[int], now: Sequence[int]) -> list[int]:
    if len(before) != len(now) or any(a > b for a, b in zip(before, now, strict=True)):
        return list(now)
    return [b - a for a, b in zip(before, now, strict=True)]


def _latency(buckets: Sequence[int]) -> str:
    """Bounds of the percentiles of a histogram by powers of two of microseconds."""
    total = sum(buckets)
    if not total:
        return ""
    words = []
    for percent in (50, 99):
        seen = 0
        for power, count in enumerate(buckets):
            seen += count
            if seen * 100 >= total * percent:
                words.append(f"p{percent} under {2**power / 1000:.3g} ms")
                break
    return ": " + ", ".join(words)


def _bytes(number: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"

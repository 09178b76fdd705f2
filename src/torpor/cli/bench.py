"""`torpor bench`: measuring a server the way its clients see it."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from torpor.cli.output import say
from torpor.datadir import data_dir
from torpor.errors import TorporError, UsageError

if TYPE_CHECKING:
    from torpor.bench.apps import App

T = TypeVar("T")

out_option = click.option(
    "--out", type=click.Path(path_type=Path), help="Where results go (default: build/bench/NAME)."
)
app_option = click.option(
    "--app", metavar="DIR|IMAGE", help="The application (default: examples/bun-counter)."
)


@click.group()
def bench() -> None:
    """Measure density, wakes, and other ways of running the same program.

    Images are made in the data directory (--data); servers that are measured have data directories
    of their own, below --out.
    """
    # A benchmark that is told to end takes its server with it, as after ^C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@bench.command()
@click.option("--count", type=click.IntRange(1, 10_000_000), required=True, metavar="N")
@click.option("--rate", type=float, default=0.0, metavar="R", help="Starts a second, at most.")
@app_option
@click.option(
    "--sample", type=click.IntRange(1), default=200, show_default=True, metavar="S",
    help="Starts and wakes that are measured at each step.",
)  # fmt: skip
@click.option(
    "--cooldown", "cooldown_ms", type=click.IntRange(1), default=1000, show_default=True,
    metavar="MS",
)  # fmt: skip
@click.option(
    "--memory", "memory_mb", type=int, default=256, show_default=True, metavar="M", help="MiB each."
)
@out_option
@click.option("--server", metavar="URL", help="A server that runs, with UKC_TOKEN's token.")
@click.option("--proxy", metavar="HOST:PORT", help="Its plain HTTP port (127.0.0.1:8080).")
@click.option(
    "--rest", "rest_s", type=float, default=10.0, show_default=True, metavar="SECONDS",
    help="How long the server is watched at rest, at each step.",
)  # fmt: skip
@click.option(
    "--faults", "faults_s", type=float, default=0.0, metavar="SECONDS",
    help="About so often kill torpord, the proxy or a VM process.",
)  # fmt: skip
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="config.toml of the server that is started.",
)  # fmt: skip
@click.pass_obj
def density(
    data: str | None,
    count: int,
    rate: float,
    app: str | None,
    sample: int,
    cooldown_ms: int,
    memory_mb: int,
    out: Path | None,
    server: str | None,
    proxy: str | None,
    rest_s: float,
    faults_s: float,
    config: Path | None,
) -> int:
    """Start N instances, one request each, and let them go to standby; measure on the way.

    An interrupted run goes on when it is called again with the same --out.
    """
    from torpor.bench import apps, refuse_debug_build
    from torpor.bench.density import Density, Options
    from torpor.bench.density_report import write
    from torpor.bench.journal import Journal, Settings, new_name
    from torpor.bench.ledger import Ledger
    from torpor.bench.plots import require_matplotlib
    from torpor.bench.server import Shape, own_server, running_server

    refuse_debug_build()
    require_matplotlib()
    directory = _directory(out, "density")
    journal = Journal(directory)
    settings = journal.settings()
    images, own = data_dir(data), directory / "data"
    if settings is None:
        application = apps.build(images, app or apps.example("bun-counter"), say)
        image = application.name if server else apps.put(application, images, own, say)
        settings = Settings(
            name=new_name(),
            app=application.name,
            image=image,
            port=application.port,
            memory_mb=memory_mb,
            cooldown_ms=cooldown_ms,
            began_s=time.time(),
        )
        journal.begin(settings)
    elif cooldown_ms != settings.cooldown_ms:
        raise UsageError(
            f"{directory} holds a run with --cooldown {settings.cooldown_ms}: use another --out"
        )
    # An instance whose process is killed at its first start has no state, and is to start again.
    restart = "always" if faults_s else "never"
    shape = Shape(
        settings.image,
        settings.port,
        settings.memory_mb,
        settings.cooldown_ms,
        restart_policy=restart,
    )
    options = Options(count, rate, sample, rest_s, faults_s)
    settings_text = "" if config is None else config.read_text()
    serving = running_server(server, proxy, images) if server else own_server(own, settings_text)
    with contextlib.closing(Ledger(directory / "ledger", count)) as ledger, serving as target:

        async def measure() -> None:
            run = Density(target, shape, options, settings, journal, ledger, _Progress())
            await run.run()

        _run(measure(), directory)
    return write(directory, settings, journal)


@bench.command()
@click.option("--runs", type=click.IntRange(1), default=50, show_default=True)
@app_option
@out_option
@click.pass_obj
def peers(data: str | None, runs: int, app: str | None, out: Path | None) -> int:
    """Start and wake the same program as a process, in crun and runsc, and as a microVM.

    What is not installed has no row. Needs root.
    """
    from torpor.bench import Report, apps, native, refuse_debug_build
    from torpor.bench.peers import microvms, outside
    from torpor.bench.server import Shape, own_server

    refuse_debug_build()
    directory = _directory(out, "peers")
    (application,) = _inside_namespaces(data, [app or apps.example("bun-counter")])
    report = Report("peers", directory)
    with native.scratch() as scratch:
        outside(report, application, scratch, runs)
    own = _fresh(directory)
    image = apps.put(application, data_dir(data), own, say)
    shape = Shape(image, application.port, cooldown_ms=1)
    with own_server(own) as target:
        _run(microvms(report, target, shape, runs), directory)
    return report.finish()


@bench.command()
@click.option("--instances", type=click.IntRange(2), default=1000, show_default=True)
@click.option("--wakes", type=click.IntRange(1), default=10_000, show_default=True)
@click.option(
    "--also", multiple=True, metavar="DIR|IMAGE",
    default=("node-express", "python-fastapi", "go-http", "nginx-static"),
    help="Other programs, for a row each (default: four of examples/).",
)  # fmt: skip
@app_option
@out_option
@click.pass_obj
def wake(
    data: str | None,
    instances: int,
    wakes: int,
    also: tuple[str, ...],
    app: str | None,
    out: Path | None,
) -> int:
    """Wake sleeping instances, alone and under load; compare with the running program.

    Needs root, and the program wrk.
    """
    from torpor.bench import Report, apps, refuse_debug_build
    from torpor.bench.plots import histogram
    from torpor.bench.running import Running
    from torpor.bench.server import Shape, own_server
    from torpor.bench.wake_cases import FRESH_CONFIG, TEMPLATES_CONFIG, Cases, lower_config

    refuse_debug_build()
    directory = _directory(out, "wake")
    others = [apps.example(one) if Path("examples", one).is_dir() else one for one in also]
    found = _inside_namespaces(data, [app or apps.example("bun-counter"), *others])
    report, own = Report("wake", directory), _fresh(directory)
    shapes = [
        Shape(apps.put(one, data_dir(data), own, say), one.port, cooldown_ms=1) for one in found
    ]
    (counter, shape), *rest = zip(found, shapes, strict=True)
    histograms: dict[str, list[float]] = {}

    async def all_cases(cases: Cases) -> None:
        await Running(report, cases.target).measure(counter, shape)
        await cases.counter(shape)
        for other, its_shape in rest:
            await cases.other(other, its_shape)

    servers: list[tuple[str, Callable[[Cases], Coroutine[Any, Any, None]]]] = [
        ("", all_cases),
        (FRESH_CONFIG, lambda cases: cases.fresh(shape)),
        (TEMPLATES_CONFIG, lambda cases: cases.templates(shape)),
        (lower_config(own / "lower"), lambda cases: cases.lower(shape)),
    ]
    for config, work in servers:
        with own_server(own, config) as target:
            cases = Cases(report, target, directory, _Progress(), wakes, instances)
            _run(work(cases), directory)
            histograms |= cases.histogram
    title = "from request to answer of instances that slept"
    histogram(directory / "wake.png", histograms, title=title, x="ms", most=10.0)
    return report.finish()


def _directory(out: Path | None, name: str) -> Path:
    directory = (out or Path("build") / "bench" / name).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _inside_namespaces(data: str | None, sources: "list[str]") -> "list[App]":
    """Applications, for a command that goes on in namespaces of its own: they are built before."""
    from torpor.bench import apps, native

    images = data_dir(data)
    if not native.inside_namespaces():
        for source in sources:
            apps.build(images, source, say)
        native.enter_namespaces()
    native.loopback_up()
    return [apps.find(images, source) for source in sources]


def _fresh(directory: Path) -> Path:
    """An empty data directory below `directory`. Raises TorporError if a server runs on it."""
    from torpor.locks import TORPORD, holder

    own = directory / "data"
    if own.exists():
        if (pid := holder(own / TORPORD)) is not None:
            raise TorporError(f"a server runs on {own}: end process {pid} first")
        shutil.rmtree(own)
    return own


def _run(work: Coroutine[Any, Any, T], directory: Path) -> T:
    """Runs a benchmark's client. What ends it is said in one line, with how to go on."""
    import uvloop

    from torpor.bench.counter import NoAnswerError
    from torpor.bench.http import LostError

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except (NoAnswerError, LostError) as error:
        raise TorporError(f"{error} (what was measured so far is in {directory})") from error


class _Progress:
    """Shows what happens on standard error: on a terminal in one line, else now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._said_s = 0.0

    def __call__(self, text: str) -> None:
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            sys.stderr.write(f"\r{text[:width]:{width}}")
            sys.stderr.flush()
        elif time.monotonic() - self._said_s > 5 or " started, " not in text:
            self._said_s = time.monotonic()
            say(text)

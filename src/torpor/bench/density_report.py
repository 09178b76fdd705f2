"""What a density run found, for the terminal, as JSON, as a page and as plots."""

from pathlib import Path

from torpor.bench.density import AUDIT_EVERY, BUSY_REQUESTS
from torpor.bench.journal import Baseline, Final, Journal, Killed, Progress, Settings, Spent, Step
from torpor.bench.plots import curves
from torpor.bench.report import Bar, Report, commit, host, percentile

MB = 1e6
KB = 1e3
RATE_WINDOW_S = 5.0
PLOTS = ("start", "wake", "disk", "memory", "rate")


def write(directory: Path, settings: Settings, journal: Journal) -> int:
    """Writes density.json, report.md and the plots, and prints the figures; the exit status."""
    baseline, final, steps = journal.last(Baseline), journal.last(Final), journal.of(Step)
    assert baseline is not None  # noqa: S101 -- a run that is over has one
    assert final is not None  # noqa: S101
    report = Report("density", directory)
    for message in final.wrong:
        report.wrong_answer(message)
    _rows(report, steps, baseline, final, journal)
    _plots(directory, steps, baseline, journal)
    _page(directory / "report.md", report, settings, journal)
    last = steps[-1].instances
    return report.finish([f"start at {last}", f"wake at {last}", "disk per instance"])


def _rows(
    report: Report, steps: list[Step], baseline: Baseline, final: Final, journal: Journal
) -> None:
    first, last = steps[0], steps[-1]
    progress = journal.last(Progress)
    if progress is not None and progress.loading_s:
        rate = progress.loaded / progress.loading_s
        report.value("started", rate, "1/s", bar=Bar(700, at_least=True))
    spent = journal.of(Spent)
    for part in spent[-1].seconds if spent else ():
        each_ms = 1e3 * sum(one.seconds[part] for one in spent) / sum(s.instances for s in spent)
        report.value(f"processor per start: {part}", each_ms, "ms")
    for step in (first, last) if first is not last else (last,):
        for what, values in (("start", step.start_ms), ("wake", step.wake_ms)):
            report.samples(f"{what} at {step.instances}", values, "ms", bar=Bar(1.5))
            p99 = percentile(sorted(values), 99)
            report.value(f"{what} at {step.instances}, p99", p99, "ms", bar=Bar(5))
    if first is not last:
        growth = percentile(sorted(last.wake_ms), 50) / percentile(sorted(first.wake_ms), 50)
        report.value("wake, last by first", growth, "times", bar=Bar(1.2))
    report.value("disk per instance", disk_per_instance(last, baseline) / KB, "KB", bar=Bar(10))
    if final.busy_disk_bytes:
        busy = (final.busy_disk_bytes - baseline.disk_bytes) / last.instances / KB
        report.value(f"disk, 1 in 100 asked {BUSY_REQUESTS} times", busy, "KB")
    if last.torpord_rss_bytes:
        both = last.torpord_rss_bytes + last.proxy_rss_bytes
        report.value("memory of torpord and proxy", both / MB, "MB", bar=Bar(250))
        report.value("memory of torpord", last.torpord_rss_bytes / MB, "MB")
        report.value("memory of the proxy", last.proxy_rss_bytes / MB, "MB")
        report.value("private memory of the pool", last.vms_private_bytes / MB, "MB")
        share = 100 * last.rest_cpu_s / last.rest_s
        report.value("processor at rest, of one core", share, "%", bar=Bar(0.5))
    report.value("audited at the end", final.audited / max(final.audit_s, 1e-9), "1/s")
    if final.restart_s is not None:
        report.value("torpord killed to first wake", final.restart_s, "s", bar=Bar(1))


def disk_per_instance(step: Step, baseline: Baseline) -> float:
    """Bytes, with everything included that came after image, template and empty store."""
    return max(step.disk_bytes - baseline.disk_bytes, 0) / step.instances


def rates(progress: list[Progress]) -> list[tuple[float, float]]:
    """Instances a second over the creation phase: (seconds of it, rate)."""
    points = []
    start = 0
    for number, one in enumerate(progress):
        while progress[start].loading_s < one.loading_s - RATE_WINDOW_S:
            start += 1
        took_s = one.loading_s - progress[start].loading_s
        if number > start and took_s > 0:
            points.append((one.loading_s, (one.loaded - progress[start].loaded) / took_s))
    return points


def _plots(directory: Path, steps: list[Step], baseline: Baseline, journal: Journal) -> None:
    samples = {
        "start": [(step.instances, sorted(step.start_ms)) for step in steps],
        "wake": [(step.instances, sorted(step.wake_ms)) for step in steps],
    }
    for what, ordered in samples.items():
        series = {
            f"p{percent}": [(at, percentile(values, percent)) for at, values in ordered]
            for percent in (50, 99)
        }
        curves(
            directory / f"{what}.png",
            series,
            title=f"{what} of an instance, as a client sees it",
            x="instances",
            y="ms",
        )
    disk = [(step.instances, disk_per_instance(step, baseline) / KB) for step in steps]
    curves(directory / "disk.png", {"disk per instance": disk}, title="disk", x="instances", y="KB")
    memory = {
        "torpord": [(step.instances, step.torpord_rss_bytes / MB) for step in steps],
        "proxy": [(step.instances, step.proxy_rss_bytes / MB) for step in steps],
        "VM processes at rest": [(step.instances, step.vms_private_bytes / MB) for step in steps],
    }
    curves(directory / "memory.png", memory, title="memory", x="instances", y="MB")
    if points := rates(journal.of(Progress)):
        curves(
            directory / "rate.png",
            {"started": points},
            title="instances started a second",
            x="seconds of the creation phase",
            y="1/s",
        )


def _page(path: Path, report: Report, settings: Settings, journal: Journal) -> None:
    final = journal.last(Final)
    assert final is not None  # noqa: S101 -- see write()
    killed = journal.of(Killed)
    killed_vms = sum(one.what == "vm" for one in killed)
    machine = ", ".join(f"{key} {value}" for key, value in host().items())
    verdict = "passed" if not final.wrong else f"FAILED: {len(final.wrong)} findings"
    lines = [
        f"# {journal.of(Step)[-1].instances:,} instances",
        "",
        f"Application {settings.app}, cool-down {settings.cooldown_ms} ms, commit {commit()}.",
        f"Machine: {machine}; clients on the same machine.",
        "",
        "```",
        report.table().rstrip(),
        "```",
        "",
        " ".join(f"![{name}]({name}.png)" for name in PLOTS),
        "",
        f"Audit: {verdict}.",
        "",
        f"- answers judged: {final.answers:,}",
        f"- woken at the end, every {AUDIT_EVERY}th: {final.audited:,}",
        f"- processes killed meanwhile: {len(killed)}, of them VM processes: {killed_vms}",
        f"- instances that fell back to their last generation: {final.fell_back}",
        f"- requests without an answer: {final.lost}",
        f"- requests answered 503 and asked again: {final.refused}",
        *(f"- WRONG: {message}" for message in final.wrong[:100]),
        "",
        "| instances | start p50 | p99 | wake p50 | p99 ms | torpord MB | proxy MB | host GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for step in journal.of(Step):
        starts, wakes = sorted(step.start_ms), sorted(step.wake_ms)
        figures = [percentile(v, p) for v in (starts, wakes) for p in (50, 99)]
        lines.append(
            f"| {step.instances:,} | " + " | ".join(f"{figure:.2f}" for figure in figures)
            + f" | {step.torpord_rss_bytes / MB:.0f} | {step.proxy_rss_bytes / MB:.0f}"
            + f" | {step.host_used_bytes / 1e9:.2f} |"
        )  # fmt: skip
    path.write_text("\n".join(lines) + "\n")

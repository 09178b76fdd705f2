"""docs/conformance.md, from what is kept of runs of the binary that is installed now."""

from collections.abc import Iterator

from tests.conformance import cases, cpython, fuzz, stress_ng, suites
from tests.conformance.kept import Side, build, commit
from tests.harness import REPOSITORY

PAGE = REPOSITORY / "docs" / "conformance.md"
PROGRAMS = 1000
BAR = 0.97
GUESTS = {Side.GUEST: "rewritten", Side.TRAPPED: "trapped"}
"""Ways to run a guest, and what its system calls are then (docs/fast-calls.md)."""
HEADER = """# Conformance

Written by `make conformance`. Everything here runs unchanged in a microVM and on the machine's own
Linux, and what it does there is what it should do here: with sites of system calls rewritten to
jumps (docs/fast-calls.md), and with all of them trapped (`--no-rewrite`).
"""


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def summary() -> Iterator[str]:
    yield f"All of it is of one build, {build()[:12]}, at commit {commit()}.\n"
    yield "| | rewritten | trapped |\n|---|---|---|"
    rows = {
        "random programs that do the same": fuzz_figures,
        "stressors of stress-ng that pass as natively": stress_figures,
        "cases of CPython's tests that pass as natively": cpython_figures,
    }
    for title, figures in rows.items():
        yield f"| {title} | " + " | ".join(figures(side) for side in GUESTS) + " |"
    counts = suites.known()
    own = "not run" if counts is None else counts.text()
    yield f"| tests with the project's own programs | {own} | in part (test_rewrite) |"


def fuzz_figures(side: Side) -> str:
    found = [(count, fuzz.known(first, count, side)) for first, count in fuzz.batches(1, PROGRAMS)]
    run = [(count, batch) for count, batch in found if batch is not None]
    total = sum(count for count, _ in run)
    return figures(total - sum(len(batch) for _, batch in run), total, PROGRAMS - total)


def stress_figures(side: Side) -> str:
    pairs = [stress_pair(name, side) for name in stress_ng.STRESSORS]
    run = [pair for pair in pairs if pair is not None]
    passing = [guest for native, guest in run if native.word == "passed"]
    good = sum(guest.word == "passed" for guest in passing)
    return figures(good, len(passing), len(pairs) - len(run))


def cpython_figures(side: Side) -> str:
    modules = [cases.known(name, side) for name in cpython.MODULES]
    run = [module for module in modules if module is not None]
    native, guest = sum(m.native for m in run), sum(m.guest for m in run)
    text = figures(guest, native, len(modules) - len(run), "modules")
    share = guest / max(1, native)
    return f"{text}: {share:.2%} (bar {BAR:.0%}: {'met' if share >= BAR else 'MISSED'})"


def figures(good: int, total: int, missing: int, what: str = "") -> str:
    left = f", {missing} {what} not run".replace("  ", " ") if missing else ""
    return f"{good} of {total}{left}"


def stress_pair(name: str, side: Side) -> tuple[stress_ng.Outcome, stress_ng.Outcome] | None:
    native, guest = stress_ng.known(name, Side.NATIVE), stress_ng.known(name, side)
    return None if native is None or guest is None else (native, guest)


def fuzz_lines() -> Iterator[str]:
    yield f"\n## Random programs of system calls\n\nSeeds 1 to {PROGRAMS}."
    for side, way in GUESTS.items():
        for batch in fuzz.batches(1, PROGRAMS):
            for difference in fuzz.known(*batch, side) or ():
                yield f"\n```\n{way}, {difference}\n```"


def stress_lines() -> Iterator[str]:
    seconds, names = stress_ng.SECONDS, stress_ng.STRESSORS
    yield f"\n## stress-ng\n\nEach of {len(names)} stressors for {seconds} s with `--verify`.\n"
    rows = []
    for name in names:
        for side, way in GUESTS.items():
            native, guest = stress_pair(name, side) or (None, None)
            if native and guest and native.word == "passed" != guest.word:
                row = (name, way, native.word, f"{guest.word} FAILED", cell(guest.reason))
                rows.append("| " + " | ".join(row) + " |")
    if rows:
        yield "| stressor | calls | natively | in the guest | reason |\n|---|---|---|---|---|"
        yield from rows
    others = {
        name: native.word
        for name in names
        if (native := stress_ng.known(name, Side.NATIVE)) and native.word != "passed"
    }
    if others:
        yield f"\nNatively: {', '.join(f'{name} {word}' for name, word in others.items())}."


def cpython_lines() -> Iterator[str]:
    yield "\n## CPython's regression tests\n"
    yield "Cases that pass natively, and how many of them pass in the guest.\n"
    yield "| module | natively | rewritten | trapped |\n|---|---|---|---|"
    failed = []
    for name in cpython.MODULES:
        native, finished = cpython.read_kept(name, Side.NATIVE)
        passing = sum(outcome.word == "passed" for outcome in native.values())
        row = [name, str(passing) if finished else "not run"]
        for side, way in GUESTS.items():
            module = cases.known(name, side)
            row.append("not run" if module is None else str(module.guest))
            alone = cases.alone(module, side, run=False) if module else {}
            for case, outcome in module.failed.items() if module else ():
                words = [f"`{case.removeprefix('test.')}`", way, outcome.word, outcome.reason]
                words.append(alone[case].word if case in alone else "not run")
                failed.append("| " + " | ".join(map(cell, words)) + " |")
        yield "| " + " | ".join(row) + " |"
    empty = [line for name in cpython.MODULES for line in without_cases(name)]
    if empty:
        yield f"\nModules without a case that passes natively: {', '.join(empty)}."
    if failed:
        yield "\n| case that passes natively only | calls | there | reason | run by itself |"
        yield "|---|---|---|---|---|"
        yield from failed


def without_cases(name: str) -> Iterator[str]:
    native, finished = cpython.read_kept(name, Side.NATIVE)
    if finished and not any(outcome.word == "passed" for outcome in native.values()):
        reasons = {outcome.reason for outcome in native.values()}
        yield f"{name} ({'; '.join(sorted(reasons))})"


def suite_lines() -> Iterator[str]:
    counts = suites.known()
    if counts is not None and counts.failed:
        yield "\n## Tests with the project's own programs that did not pass\n"
        yield from (f"- `{name}`: FAILED" for name in counts.failed)


def write() -> str:
    """Writes the page, and gives it back."""
    parts = (summary, fuzz_lines, stress_lines, cpython_lines, suite_lines)
    lines = [HEADER, *(line for part in parts for line in part())]
    text = "\n".join(lines) + "\n"
    PAGE.write_text(text)
    return text

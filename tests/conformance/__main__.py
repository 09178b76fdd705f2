"""`make conformance`: other people's tests in a microVM and natively; docs/conformance.md.

Everything is run with sites of system calls rewritten, then without. What has been run by the
same binary before is not run again, so that an interrupted run goes on where it was. Each step
renews the page. `--page` runs nothing.
"""

import sys
from collections.abc import Iterator

from tests.conformance import cases, cpython, fuzz, page, stress_ng, suites
from tests.conformance.kept import Side, build, commit


def steps() -> Iterator[str]:
    """Runs one piece of work after the other, and tells what it was."""
    for side in page.GUESTS:
        for first, count in fuzz.batches(1, page.PROGRAMS):
            fuzz.compare_once(first, count, side)
            yield f"{side.value}: random programs from {first} on"
        for name in stress_ng.STRESSORS:
            stress_ng.run(name, Side.NATIVE)
            stress_ng.run(name, side)
            yield f"{side.value}: stress-ng {name}"
        for name in cpython.MODULES:
            cases.alone(cases.compare(name, side), side)
            yield f"{side.value}: {name}"
    suites.run()
    yield "the project's own programs"


def main() -> int:
    if sys.argv[1:] != ["--page"]:
        begun = build()
        commit()
        for step in steps():
            build.cache_clear()
            if build() != begun:
                print("the binary has changed: begin again", file=sys.stderr)
                return 1
            print(step, flush=True)
            page.write()
    text = page.write()
    print(text)
    return 1 if "MISSED" in text or "FAILED" in text or "not run" in text else 0


if __name__ == "__main__":
    sys.exit(main())

"""Figures of CPython's tests: how many of the cases that pass natively pass in the guest."""

import sys
from dataclasses import dataclass

from tests.conformance.cpython import MODULES, Outcome, run_module

ABSENT = Outcome("absent")


@dataclass(frozen=True, slots=True)
class Module:
    """A module's cases that pass natively, and those of them that do not in the guest."""

    name: str
    native: int
    failed: dict[str, Outcome]

    @property
    def guest(self) -> int:
        return self.native - len(self.failed)


def compare(name: str, only: list[str] | None = None) -> Module:
    native = run_module(name, "native", only)
    passing = [case for case, outcome in native.items() if outcome.word == "passed"]
    guest = run_module(name, "guest", only)
    outcomes = {case: guest.get(case, ABSENT) for case in passing}
    failed = {case: outcome for case, outcome in outcomes.items() if outcome.word != "passed"}
    return Module(name, len(passing), failed)


def main() -> int:
    """`python -m tests.conformance.cases [MODULE...]` prints the figures as they come."""
    for name in sys.argv[1:] or MODULES:
        module = compare(name)
        print(f"{name:36} {module.guest} of {module.native}", flush=True)
        for case, outcome in module.failed.items():
            print(f"    {case}: {outcome.word} {outcome.reason}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Figures of CPython's tests: how many of the cases that pass natively pass in the guest."""

import sys
from dataclasses import asdict, dataclass

from tests.conformance.cpython import MODULES, ROOT, Outcome, Outcomes, read_kept, run_module
from tests.conformance.kept import Kept, Side

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


def judge(name: str, native: Outcomes, guest: Outcomes) -> Module:
    passing = [case for case, outcome in native.items() if outcome.word == "passed"]
    outcomes = {case: guest.get(case, ABSENT) for case in passing}
    failed = {case: outcome for case, outcome in outcomes.items() if outcome.word != "passed"}
    return Module(name, len(passing), failed)


def compare(name: str, side: Side = Side.GUEST, only: list[str] | None = None) -> Module:
    return judge(name, run_module(name, Side.NATIVE, only), run_module(name, side, only))


def known(name: str, side: Side) -> Module | None:
    """As `compare`, of what earlier runs have kept; None if one of the two is not finished."""
    native, guest = read_kept(name, Side.NATIVE), read_kept(name, side)
    return judge(name, native[0], guest[0]) if native[1] and guest[1] else None


def alone(module: Module, side: Side, run: bool = True) -> Outcomes:
    """What becomes of the cases that failed when they are run by themselves, kept once it is known.

    On a busy machine some cases take too long only because of what runs beside them.
    """
    kept = Kept(side, ROOT, f"{module.name}-alone")
    stored = kept.load() or {}
    known = {case: Outcome(**stored[case]) for case in module.failed if case in stored}
    missing = [case for case in module.failed if case not in known]
    if run and missing:
        known |= run_module(module.name, side, missing)
        kept.store({case: asdict(outcome) for case, outcome in known.items()})
    return known


def main() -> int:
    """`python -m tests.conformance.cases [--no-rewrite] [MODULE...]`: figures as they come."""
    words = sys.argv[1:]
    side = Side.TRAPPED if "--no-rewrite" in words else Side.GUEST
    for name in [word for word in words if word != "--no-rewrite"] or MODULES:
        module = compare(name, side)
        print(f"{name:36} {module.guest} of {module.native}", flush=True)
        for case, outcome in module.failed.items():
            print(f"    {case}: {outcome.word} {outcome.reason}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

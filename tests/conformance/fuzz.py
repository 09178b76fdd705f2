"""Random programs of system calls, natively and in a microVM: both must do the same.

`python -m tests.conformance.fuzz [FIRST [COUNT]]` compares the programs of seeds FIRST and up (1,
1000), and shows of each that differs the first call whose result does, and a shorter program with
the same difference. The programs are tests/rootfs/programs/fuzz: a seed always gives the same one.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from tests.conformance.kept import Kept, Side
from tests.harness import run_native, vm_run

ROOT = "programs"
BATCH = 250
"""Programs run in one VM."""
TIMEOUT_S = 600.0
AGAIN = 4

Lines = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first line that differs between both runs of program `seed`."""

    seed: int
    native: str
    guest: str
    step: int
    """Number of the program's step that the line belongs to."""

    def __str__(self) -> str:
        return f"seed {self.seed}:\n  native {self.native}\n  guest  {self.guest}"

    def kind(self) -> str:
        """What stays of the native line without numbers, to tell whether two are the same."""
        return re.sub(r"[0-9a-f]+", "", self.native)


def programs(output: bytes) -> dict[int, Lines]:
    """The lines of each program in what `fuzz` has printed, by its seed."""
    found: dict[int, Lines] = {}
    for part in output.decode(errors="replace").split("== ")[1:]:
        seed, *lines = part.splitlines()
        found[int(seed)] = tuple(lines)
    return found


def compare(first: int, count: int, *cut: int, side: Side = Side.GUEST) -> list[Difference]:
    """Run both sides; `cut` is the number of steps and the steps to leave out."""
    words = ["fuzz", *map(str, (first, count, *cut))]
    native = run_native(ROOT, *words, timeout_s=TIMEOUT_S, alone=True)
    if native.status != 0:
        raise RuntimeError(f"{words} does not even run natively: {native}")
    guest = vm_run(ROOT, *words, options=side.options, timeout_s=TIMEOUT_S)
    guest_programs = programs(guest.stdout)
    found = []
    for seed, lines in programs(native.stdout).items():
        difference = first_difference(seed, lines, guest_programs.get(seed, ()))
        if difference is not None:
            found.append(difference)
    if guest.status != 0:
        last = guest.stderr.decode(errors="replace")[-2000:]
        found.append(Difference(first, "exit status 0", f"exit status {guest.status}: {last}", 0))
    return found


def known(first: int, count: int, side: Side) -> list[Difference] | None:
    """What is kept of a batch."""
    stored = Kept(side, ROOT, f"fuzz-{first}-{count}").load()
    return None if stored is None else [Difference(**fields) for fields in stored]


def compare_once(first: int, count: int, side: Side) -> list[Difference]:
    """As `compare`, or what is kept of that; each difference must show in all of AGAIN more runs.

    On a busy machine a timer may have expired on one side only, and some programs do one of two
    things natively, too.
    """
    found = known(first, count, side)
    if found is None:
        found = []
        for difference in compare(first, count, side=side):
            seed = difference.seed
            if all(compare(seed, 1, side=side) for _ in range(AGAIN)):
                found.append(difference)
        kept = Kept(side, ROOT, f"fuzz-{first}-{count}")
        kept.store([asdict(difference) for difference in found])
    return found


def first_difference(seed: int, native: Lines, guest: Lines) -> Difference | None:
    step = 0
    for index in range(max(len(native), len(guest))):
        left = native[index] if index < len(native) else "(the end)"
        right = guest[index] if index < len(guest) else "(the end)"
        number = re.match(r"(\d+) ", left)
        step = int(number[1]) if number else step
        if left != right:
            return Difference(seed, left, right, step)
    return None


def shrink(difference: Difference) -> tuple[Difference, tuple[int, ...]]:
    """The same difference from as few steps as possible, and the words behind the seed's COUNT."""
    seed, steps = difference.seed, difference.step + 1
    omitted: frozenset[int] = frozenset()

    def still_differs(without: Iterable[int]) -> Difference | None:
        found = compare(seed, 1, steps, *sorted(without))
        return found[0] if found and found[0].kind() == difference.kind() else None

    kept = list(range(steps - 1))
    size = max(1, len(kept) // 2)
    shown = difference
    while kept:
        for at in range(0, len(kept), size):
            without = omitted.union(kept[at : at + size])
            same = still_differs(without)
            if same is not None:
                omitted, shown = without, same
        kept = [step for step in kept if step not in omitted]
        if size == 1:
            break
        size //= 2
    return shown, (steps, *sorted(omitted))


def explain(difference: Difference) -> str:
    """The difference, and the shortest program found that shows it."""
    same, cut = shrink(difference)
    words = " ".join(map(str, (same.seed, 1, *cut)))
    native = run_native(ROOT, "fuzz", *words.split(), timeout_s=TIMEOUT_S, alone=True)
    return f"{same}\n  repeat with: fuzz {words}\n{native.stdout.decode(errors='replace')}"


def batches(first: int, count: int) -> Iterable[tuple[int, int]]:
    for begin in range(first, first + count, BATCH):
        yield begin, min(BATCH, first + count - begin)


def main() -> int:
    first = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    found = [difference for batch in batches(first, count) for difference in compare(*batch)]
    shown: set[str] = set()
    for difference in found:
        if difference.kind() in shown:
            print(difference)
        else:
            shown.add(difference.kind())
            print(explain(difference))
    print(f"{count - len(found)} of {count} programs the same")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

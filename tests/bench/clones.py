"""`make bench-clones`: which random numbers repeat in a thousand clones of one template."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.snapshot.clones import (
    NOT_CRYPTOGRAPHIC,
    REPEATING,
    RUNTIMES,
    distinct_values,
    template_of,
)


async def measure(runtime: str, clones: int) -> dict[str, int]:
    """Different values of each generator of a runtime."""
    with tempfile.TemporaryDirectory() as directory:
        template = await template_of(runtime, Path(directory))
        try:
            return await distinct_values(Path(directory), template, clones)
        finally:
            template.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtimes", nargs="*", choices=[*RUNTIMES, []], help="default: all")
    parser.add_argument("--clones", type=int, default=1000)
    options = parser.parse_args()
    unexpected = 0
    print(f"{'runtime':10} {'generator':30} different values in {options.clones} clones")
    for runtime in options.runtimes or RUNTIMES:
        for name, count in asyncio.run(measure(runtime, options.clones)).items():
            note = ""
            if count < options.clones:
                known = name in NOT_CRYPTOGRAPHIC or name in REPEATING.get(runtime, ())
                note = "repeats, as docs/security.md says" if known else "REPEATS"
                unexpected += not known
            print(f"{runtime:10} {name:30} {count:6} {note}".rstrip(), flush=True)
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())

"""Programs whose clones repeat random numbers that are meant to be secret (docs/security.md)."""

from collections.abc import Iterable

_NAMES = {
    "node": "Node.js",
    "nodejs": "Node.js",
    "npm": "Node.js",
    "npx": "Node.js",
    "bun": "Bun",
    "bunx": "Bun",
}


def runtime_that_repeats(command: Iterable[str]) -> str | None:
    """The runtime that a command line names, if clones of its programs repeat; else None.

    Goes by names, so it misses what is hidden in a script.
    """
    for word in command:
        runtime = _NAMES.get(word.rpartition("/")[2])
        if runtime is not None:
            return runtime
    return None

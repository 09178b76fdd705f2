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


NOT_TEMPLATED = frozenset({"Node.js"})
"""Whose generators repeat whatever the program did before: it gets no template by itself. Bun's
repeat only what was drawn in advance before the template was made."""


def why_not_templated(command: Iterable[str]) -> str | None:
    """Why no template is made of a program unless a person asks for it; else None."""
    runtime = runtime_that_repeats(command)
    if runtime not in NOT_TEMPLATED:
        return None
    return (
        f"no template is made of {runtime} programs: their clones would draw the same random "
        "numbers, keys too (docs/security.md)"
    )


def runtime_that_repeats(command: Iterable[str]) -> str | None:
    """The runtime that a command line names, if clones of its programs repeat; else None.

    Goes by names, so it misses what is hidden in a script.
    """
    for word in command:
        runtime = _NAMES.get(word.rpartition("/")[2])
        if runtime is not None:
            return runtime
    return None

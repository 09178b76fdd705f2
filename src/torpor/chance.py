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


def why_not_templated(command: Iterable[str], *, drew_random: bool) -> str | None:
    """Why no template is made of a program unless a person asks for it; else None.

    `drew_random`: it has used a generator like BoringSSL's (of Bun's programs that is known).
    """
    runtime = runtime_that_repeats(command)
    match runtime, drew_random:
        case "Node.js", _:
            what = f"{runtime} programs"
        case "Bun", True:
            what = "Bun programs that use random numbers before they are ready"
        case _:
            return None
    return (
        f"no template is made of {what}: their clones could draw the same ones, UUIDs and keys "
        "too (docs/security.md)"
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

"""Which programs get no template by themselves."""

import pytest

from torpor.chance import runtime_that_repeats, why_not_templated


@pytest.mark.parametrize(
    ("command", "runtime", "templated"),
    [
        (["node", "server.js"], "Node.js", False),
        (["/usr/local/bin/node"], "Node.js", False),
        (["sh", "-c", "npx", "x"], "Node.js", False),
        (["bun", "run", "x.ts"], "Bun", True),
        (["python3", "node.py"], None, True),
        ([], None, True),
    ],
)
def test_runtimes(command: list[str], runtime: str | None, templated: bool) -> None:
    assert runtime_that_repeats(command) == runtime
    assert (why_not_templated(command, drew_random=False) is None) == templated

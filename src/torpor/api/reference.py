"""docs/api.md, from the table of operations: `python -m torpor.api.reference > docs/api.md`."""

import re
import sys

import torpor.api.resources  # noqa: F401 -- fills the table
from torpor.api.operations import REGISTRY, Operation

PREAMBLE = """# The API

<!-- Made by `python -m torpor.api.reference > docs/api.md`; a test fails when it is stale. -->

torpord speaks the platform API of Unikraft Cloud as the PyPI package `unikraft-cloud` 0.3.0 does.
One origin serves platform, control plane and build surfaces:

    export UKC_METRO=http://127.0.0.1:7400 UKC_TOKEN=$(cat DATA/token)

and in code `UnikraftCloud(base_url=U, control_plane_url=U, build_url=U, token=T)`. The OpenAPI
document is at `/openapi.json`.

- Answers are `{status, message?, data, op_time_us}`; every object in `data` has its own `status`.
  An object that fails has `error` (8: there is none; 23: the name is in use; 1: not supported yet;
  7: a value breaks a rule) and `message`, and the HTTP status stays 200. A request that cannot be
  understood as a whole is refused with 400 and `errors`, and nothing of it is done.
- Bodies are one object or an array of up to 10,000, also those of GET and DELETE; 16 MiB at most.
- A token has scopes: `read` for GET, `write` for all else, `admin` for tokens and quotas. Through
  `DATA/run/api.sock` root and torpord's own user need none.
- `/v1/images` answers for the control plane when `namespace` or `details` is given.
- A restart policy `on-failure` takes a program's exit status other than 0 for a failure.
- `from` of a list is a uuid or a time, `state` is an addition of Torpor's.

Requests are decoded by msgspec into the types that the document is made from. The framework is
Starlette: it starts in half the time of those that make such a document themselves.

States of operations: supported; partial, with what is missing; not supported yet, which is what
such an operation answers, in the envelope of its surface.
"""
_PARAMETER = re.compile(r"\{(\w+):\w+\}")


def reference() -> str:
    """The whole document."""
    groups: dict[str, list[Operation]] = {}
    for operation in REGISTRY.operations:
        groups.setdefault(operation.group, []).append(operation)
    parts = [PREAMBLE]
    for group in sorted(groups):
        rows = sorted(groups[group], key=lambda each: (each.path, each.method))
        parts.append(f"\n## {group}\n\n| operation | id | scope | state |\n|---|---|---|---|\n")
        for each in rows:
            path = _PARAMETER.sub(r"{\1}", each.path)
            note = f": {each.note}" if each.note else ""
            parts.append(
                f"| {each.method} `{path}` | {each.id} | {each.scope} | {each.support}{note} |\n"
            )
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(reference())

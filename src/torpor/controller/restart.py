"""Whether and when an instance whose program ended is started again."""

from dataclasses import dataclass

from torpor.controller.model import RestartPolicy
from torpor.controller.vm import Exit


@dataclass(frozen=True, slots=True)
class Backoff:
    """Immediate, then `first_s`, doubling up to `limit_s`; a run of `healthy_s` begins anew."""

    first_s: float = 5.0
    limit_s: float = 300.0
    healthy_s: float = 10.0

    def delay_s(self, attempt: int) -> float:
        """How long to wait before restart number `attempt`, counted from 1."""
        if attempt <= 1:
            return 0.0
        return min(self.first_s * 2.0 ** min(attempt - 2, 30), self.limit_s)


def wants_restart(policy: RestartPolicy, result: Exit) -> bool:
    """What the policy says about this end.

    A program's own exit with a status other than 0 is a failure, as under docker and systemd.
    """
    if policy == "on-failure":
        return result.kind != "exit" or result.status != 0
    return policy == "always"

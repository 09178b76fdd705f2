"""What is kept in memory of an instance that is more than its row."""

import asyncio
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from torpor.controller.events import now_ms
from torpor.controller.links import NO_TRAFFIC, Traffic
from torpor.controller.model import (
    APPLICATION_EXIT,
    CRASH,
    KILLED_FOR_USER,
    OUT_OF_MEMORY,
    STOPPED_BY_USER,
    Config,
    Facts,
    ScaleToZero,
)
from torpor.controller.vm import Exit, VmListener, VmProcess
from torpor.controller.vm import State as SavedState
from torpor.store import Base, InstanceRow, State

DEFAULT_POLICY = ScaleToZero()


class Beginning(Struct, frozen=True):
    """How an instance begins; with all defaults cold, and it simply runs on."""

    clone_of: SavedState | None = None
    """The template that serves its configuration."""
    why_no_template: str | None = None
    """Why none is made of its configuration, as far as is known."""
    argv: tuple[str, ...] = ()
    """Of one with a `key`: its program."""
    key: bytes | None = None
    """Cold; its configuration. Its VM ends when it is ready, and another goes on with its state."""
    family: bytes | None = None
    """That state is a difference to the template of this family, if there is one."""
    is_own_template: bool = False
    """It becomes a template even so: it was asked for, or is not the first of its configuration."""
    seed: bytes | None = None
    """Of one with a `key`: what its random numbers begin with until it is ready, so that siblings
    are much alike.
    """

    @property
    def is_stored_when_ready(self) -> bool:
        """Whether its VM ends when it is ready."""
        return self.key is not None


@dataclass(eq=False, slots=True)
class Live:
    """An instance that is more than its row: it runs, comes or goes, or waits for a restart."""

    row: InstanceRow
    config: Config
    facts: Facts
    state: State
    vm: VmProcess | None = None
    listener: VmListener | None = None
    """Hears of that VM; any other is a former one's."""
    attempt: int = 0
    restart_at_ms: int = 0
    restart: "asyncio.Task[None] | None" = None
    stopping_for: int | None = None
    """The stop reason to record when it has ended, if somebody asked for its end."""
    begins_anew: State | None = None
    """The state that it is in when it has ended, if the server put it away with its VM."""
    woken: bool = False
    """It came from standby, and its row still says so."""
    link_generation: int = 0
    """The generation that its link at the proxy belongs to."""
    link: int | None = None
    """Which link of that generation it is (`Attachment.link`); None for an earlier torpord's."""
    is_unlinked: bool = False
    """The proxy has lost that link, so nothing reaches its VM."""
    group: str | None = None
    traffic: Traffic = NO_TRAFFIC
    """What went over its link, as the proxy said last."""
    base: Base | None = None
    """The template that its VM began with, kept while it runs."""
    beginning: Beginning = Beginning()  # noqa: RUF009 -- immutable
    wanted: bool = False
    """A request waits for it, or waited: a standby that is not committed is taken back."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it runs, or is gone."""
    began_s: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    """When it was started last, by the event loop's clock."""
    saved_s: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    """When its state was committed last, or it began."""

    @property
    def policy(self) -> ScaleToZero:
        """When it goes to standby by itself."""
        return self.config.scale_to_zero or DEFAULT_POLICY

    def counted(self) -> Facts:
        """What is recorded of it, with what went over its link."""
        return counted(self.facts, self.traffic)


def counted(facts: Facts, traffic: Traffic) -> Facts:
    """The same with what went over a link since."""
    return msgspec.structs.replace(
        facts,
        requests=facts.requests + traffic.requests,
        # The proxy counts from its own side.
        rx_bytes=facts.rx_bytes + traffic.tx_bytes,
        tx_bytes=facts.tx_bytes + traffic.rx_bytes,
    )


def facts_of_end(live: Live, result: Exit) -> Facts:
    """What is recorded when a VM has ended."""
    own_exit = result.kind == "exit"
    reason = live.stopping_for
    if reason is None:
        reason = APPLICATION_EXIT if own_exit else CRASH
    elif reason == STOPPED_BY_USER and not own_exit:
        reason = KILLED_FOR_USER
    code = OUT_OF_MEMORY if result.kind == "out-of-memory" else None
    status = result.status if own_exit else (128 + result.status if result.status else None)
    return msgspec.structs.replace(
        live.counted(), stop_reason=reason, stop_code=code, exit_code=status, stopped_ms=now_ms()
    )

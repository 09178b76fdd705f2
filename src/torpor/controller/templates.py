"""Templates that are made by themselves, and the warm bases that siblings teach.

A template serves a configuration: owner, image, arguments, environment, size. It is made at the
second start of that configuration or of its family, which is all that but the environment, or when
it was asked for, from a VM that has just become ready. Later instances of the configuration begin
as its clones. Those of the family boot with the same random numbers, and what they differ by from
it when they are ready is their state; the second instance of such a configuration makes a template
of its own.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from torpor.chance import why_not_templated
from torpor.controller.errors import ItemError
from torpor.controller.live import Beginning, Live
from torpor.controller.saved import SavedStates, configuration_key, family_key
from torpor.controller.vm import Machine, Saved, State, VmHost
from torpor.store import Base, Content, InstanceRow, Store, StoreError
from torpor.tasks import Tasks

SEEN_MAX = 10_000
"""Configurations of which is remembered that they were started once."""
SIBLINGS = 14
"""How many instances' deltas teach a warm base; no more go into one command to a VM process."""
SIBLINGS_LEAST = 5
"""So many do where one of them sleeps again before there are more."""
LEARNING_MAX = 256
"""Templates whose siblings' deltas are collected at a time."""


@dataclass(slots=True)
class _Seen:
    """A configuration or family that was started before."""

    by: str
    """The uuid of the instance that did so first."""
    why_not: str | None = None
    """Why there is no template of it, as far as is known."""


@dataclass(slots=True)
class _Siblings:
    """Deltas against a template alone, by instance; the newest of each."""

    template: Base
    deltas: dict[str, Content] = field(default_factory=dict)
    learning: bool = False


class Templates:
    """Which template an instance begins with, and which warm base VM processes rest at."""

    def __init__(self, store: Store, saved: SavedStates, host: VmHost) -> None:
        self._store = store
        self._saved = saved
        self._host = host
        self._seen: OrderedDict[bytes, _Seen] = OrderedDict()
        """By configuration or family."""
        self._asked: set[bytes] = set()
        self._first_of: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._warm: dict[int, Base | None] = {}
        self._siblings: OrderedDict[int, _Siblings] = OrderedDict()
        self._tasks = Tasks()

    # Templates ----------------------------------------------------------------------------------

    def begin_with(self, row: InstanceRow, machine: Machine) -> Beginning:
        """How an instance without a state of its own begins.

        With all defaults at the first start of a configuration and its family: it may be the only
        one. Likewise for a program whose clones repeat random numbers.
        """
        key, family, argv = configuration_key(machine), family_key(machine), machine.argv
        why_not = why_not_templated(argv, drew_random=False)
        for seen in (self._seen.get(key), self._seen.get(family)):
            if seen is not None:
                why_not = why_not or seen.why_not
        if row.kind != "instance" or why_not is not None:
            return Beginning(why_no_template=why_not)
        template = self._store.bases.by_key(key)
        if template is not None:
            return Beginning(clone_of=State(template, None))
        asked = key in self._asked
        self._asked.discard(key)
        first, first_of_family = (self._first(one, row.uuid) for one in (key, family))
        again = asked or first is not None or first_of_family is not None
        if again or self._store.bases.by_family(family) is not None:
            seed = self._saved.boot_seed(family)
            own = asked or first not in (None, row.uuid)
            return Beginning(argv=argv, key=key, family=family, is_own_template=own, seed=seed)
        return Beginning()

    def _first(self, key: bytes, uuid: str) -> str | None:
        """Who started a configuration or family first; none where it is this instance's turn."""
        seen = self._seen.get(key)
        if seen is None:
            self._seen[key] = _Seen(uuid)
            if len(self._seen) > SEEN_MAX:
                self._seen.popitem(last=False)
            return None
        self._seen.move_to_end(key)
        return seen.by

    def ask_for(self, machine: Machine) -> None:
        """The next start of this configuration makes its template, if there is none."""
        self._asked.add(configuration_key(machine))

    def refusal(self, beginning: Beginning, saved: Saved) -> str | None:
        """Why `saved` must neither become a template nor go on as a sibling; None if it may.

        That counts from now on for its configuration, and for a family without a template.
        """
        assert beginning.key is not None  # noqa: S101 -- it is stored for that
        why = why_not_templated(beginning.argv, drew_random=saved.drew_random)
        if why is None:
            return None
        keys = [beginning.key]
        if beginning.family and self._store.bases.by_family(beginning.family) is None:
            keys.append(beginning.family)
        for key in keys:
            if key in self._seen:
                self._seen[key].why_not = why
        return why

    async def add(self, row: InstanceRow, saved: Saved, image: str, beginning: Beginning) -> Base:
        """Records a template that was just made. Raises StoreError."""
        key, family = beginning.key, beginning.family
        return await self._saved.add_template(row.owner_id, saved.content, image, key, family)

    @asynccontextmanager
    async def base_of(
        self, beginning: Beginning
    ) -> AsyncIterator[tuple[State | None, Base | None]]:
        """What a VM goes on as that is stored because it is ready, within the block.

        A clone of the template of its configuration; else a difference to the other template; where
        there is neither it becomes a template itself, and others of its family wait for that.
        """
        key, family = beginning.key, beginning.family
        assert key is not None  # noqa: S101 -- it is stored for that
        lock = self._first_of.setdefault(family or key, asyncio.Lock())
        async with lock:
            template = self._store.bases.by_key(key)
            if template is not None:
                yield State(template, None), None
            elif family is None or beginning.is_own_template:
                yield None, None
            else:
                yield None, self._store.bases.by_family(family)

    # Warm bases ---------------------------------------------------------------------------------

    def warm(self, template: Base) -> Base | None:
        """The warm base at which processes of a template rest."""
        if template.id not in self._warm:
            self._warm[template.id] = self._store.bases.newest_warm(template.id)
        return self._warm[template.id]

    def dropped(self, base: Base) -> None:
        """A base is deleted: nothing rests at it from now on."""
        if base.template_id is not None:
            self._warm.pop(base.template_id, None)

    def stored(self, live: Live, saved: Saved) -> None:
        """A delta was committed: it may teach a warm base."""
        template = saved.template
        if template is None or saved.warm is not None or self.warm(template) is not None:
            return
        # What is not in memory is too large.
        if not saved.content.data:
            return
        siblings = self._siblings.get(template.id)
        if siblings is None:
            siblings = self._siblings[template.id] = _Siblings(template)
            if len(self._siblings) > LEARNING_MAX:
                self._siblings.popitem(last=False)
        slept_before = live.row.uuid in siblings.deltas
        siblings.deltas[live.row.uuid] = saved.content
        wanted = SIBLINGS_LEAST if slept_before else SIBLINGS
        if len(siblings.deltas) >= wanted and not siblings.learning:
            siblings.learning = True
            self._tasks.start(self._learn(siblings))

    async def _learn(self, siblings: _Siblings) -> None:
        template = siblings.template
        try:
            with self._saved.pinned(template):
                deltas = list(siblings.deltas.values())[:SIBLINGS]
                content = await self._host.learn(template, deltas)
                self._warm[template.id] = await self._saved.add_warm(template, content)
        except (ItemError, StoreError):
            # Without a warm base all goes on, only with larger deltas; those that follow try again.
            siblings.deltas.clear()
        finally:
            siblings.learning = False
        if self._warm.get(template.id) is not None:
            self._siblings.pop(template.id, None)

    async def close(self) -> None:
        """Gives up what is being learnt."""
        await self._tasks.cancel()

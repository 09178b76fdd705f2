"""What the proxy asks: who is to be woken for a request, and who may go to standby."""

import asyncio
from collections.abc import Callable

from torpor.controller.console import Console
from torpor.controller.errors import BusyError, Code, ItemError
from torpor.controller.events import Events
from torpor.controller.groups import ServiceGroups
from torpor.controller.lifecycle import Lifecycle
from torpor.controller.links import Links
from torpor.controller.live import Live
from torpor.controller.proxy import Link, Wake, WakeError, Woken
from torpor.store import InstanceRow, Store
from torpor.tasks import Tasks

MORE = 8
"""Sleeping instances of a group that are looked at beyond those that are ruled out."""
ATTACH_S = 1.0
"""How long a new proxy waits for links to VMs that run."""


def _nearness(live: Live) -> int:
    """The less, the sooner it can take a request; one without a VM is being put down."""
    if live.state == "starting":
        return 1
    return 0 if live.vm is not None else 2


class Router:
    """The handler of the connection to the proxy."""

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        groups: ServiceGroups,
        links: Links,
        console: Console,
        events: Events,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._groups = groups
        self._links = links
        self._console = console
        self._events = events
        self._tasks = Tasks()

    async def wake(self, wake: Wake, soon: Callable[[Woken], None]) -> Woken:
        """See Handler."""

        def tell(live: Live) -> None:
            soon(_woken(live))

        try:
            if wake.instance is not None:
                row = self._store.instances.by_uuid(wake.instance)
                if row is None:
                    raise WakeError("unknown", f"No instance with uuid '{wake.instance}'")
                live = await self._instance(row, wake, tell)
            else:
                live = await self._for_host(wake, tell)
        except BusyError as error:
            raise WakeError("busy", str(error)) from error
        except TimeoutError as error:
            raise WakeError("failed", "the instance did not become ready in time") from error
        except ItemError as error:
            code = "stopped" if error.code is Code.WRONG_STATE else "failed"
            raise WakeError(code, str(error)) from error
        return _woken(live)

    async def _instance(self, row: InstanceRow, wake: Wake, soon: Callable[[Live], None]) -> Live:
        """This one, or in place of one that is stopped another one of its group."""
        self._check_switching(row.service_id)
        try:
            return await self._lifecycle.wake(row, soon=soon)
        except ItemError as error:
            if error.code is not Code.WRONG_STATE or row.service_id is None:
                raise
            return await self._of_group(row.service_id, wake, soon, str(error))

    async def _for_host(self, wake: Wake, soon: Callable[[Live], None]) -> Live:
        host, port = wake.host or "", wake.port or 0
        service_id = self._groups.route(host)
        if service_id is None:
            raise WakeError("unknown", f"No service has the domain '{host}'")
        if port not in self._groups.ports(service_id):
            raise WakeError("unknown", f"No service of '{host}' has port {port}")
        why_not = f"No instance of '{host}' may be woken"
        return await self._of_group(service_id, wake, soon, why_not)

    async def _of_group(
        self, service_id: int, wake: Wake, soon: Callable[[Live], None], why_not: str
    ) -> Live:
        self._check_switching(service_id)
        lives = self._lifecycle.lives.of_service(service_id)
        usable = [live for live in lives if live.row.uuid not in wake.without]
        for live in sorted(usable, key=_nearness):
            if live.state in ("running", "starting"):
                return await self._lifecycle.wake(live.row)
        awake = {live.row.id for live in lives}
        limit = len(awake) + len(wake.without) + MORE
        for row in self._store.instances.of_service(service_id, "standby", limit):
            if row.id not in awake and row.uuid not in wake.without:
                return await self._lifecycle.wake(row, soon=soon)
        raise WakeError("stopped", why_not)

    def _check_switching(self, service_id: int | None) -> None:
        if service_id in self._groups.switching:
            raise BusyError("Another instance is about to take this one's place")

    async def idle(self, link: Link) -> str | None:
        """See Handler."""
        live = self._lifecycle.lives.by_uuid(link.instance)
        if live is None:
            return None
        self.noted(link)
        return await self._lifecycle.idle(live.row, link.generation)

    def noted(self, link: Link) -> None:
        """See Handler."""
        self._counted(link)

    def _counted(self, link: Link) -> Live | None:
        """Whose link it is, if that is still so, with what went over it."""
        live = self._lifecycle.lives.by_uuid(link.instance)
        if live is None or live.link_generation != link.generation:
            return None
        # A generation may have had a link before: that of a VM that is dead, say.
        if link.link is not None and live.link not in (None, link.link):
            return None
        live.traffic = link.traffic
        return live

    async def used_up(self, link: Link) -> None:
        """See Handler."""
        live = self._counted(link)
        if live is not None:
            await self._lifecycle.used_up(live.row)

    async def link_lost(self, link: Link) -> None:
        """See Handler."""
        live = self._counted(link)
        if live is not None:
            await self._lifecycle.link_lost(live)

    def output(self, instance: str, data: bytes) -> None:
        """See Handler."""
        live = self._lifecycle.lives.by_uuid(instance)
        row = self._store.instances.by_uuid(instance) if live is None else live.row
        if row is not None:
            self._console.output(row.id, data)
            self._events.notify(instance)

    async def connected(self, ports: list[int], links: list[Link], since_ns: int) -> None:
        """See Handler."""
        await self._groups.proxy_is_new(ports)
        there = {(link.instance, link.generation) for link in links}
        # One that wakes just now may have been told to the proxy before.
        lives = [
            live
            for live in self._lifecycle.lives.all()
            if live.vm is not None or (live.woken and live.state == "starting")
        ]
        wanted = {(live.row.uuid, live.link_generation) for live in lives}
        for instance, generation in there - wanted:
            self._links.detach(instance, generation, "lost", parked=False)
        for link in links:
            if (link.instance, link.generation) in wanted:
                self.noted(link)
                if link.quiet:
                    await self.used_up(link)
        without = [live for live in lives if (live.row.uuid, live.link_generation) not in there]
        attached = [
            self._tasks.start(self._lifecycle.attach_again(live, since_ns)) for live in without
        ]
        if attached:
            # A VM process that does not answer keeps nobody else from the proxy.
            await asyncio.wait(attached, timeout=ATTACH_S)
        for live in lives:
            if live.row.service_id is not None:
                self._groups.announce(live.row.service_id)


def _woken(live: Live) -> Woken:
    return Woken(live.group, live.row.uuid, live.link_generation)

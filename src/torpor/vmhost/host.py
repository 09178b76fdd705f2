"""The VM processes of one torpord."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID

from torpor.controller.errors import BusyError, Code, ItemError
from torpor.controller.vm import (
    BaseFinder,
    BaseReader,
    Found,
    Identity,
    Machine,
    State,
    VmListener,
    VmProcess,
    WarmBases,
)
from torpor.errors import TorporError
from torpor.images import ImageStore
from torpor.store import Base, Content
from torpor.tasks import Tasks
from torpor.vmhost.adopting import Gone, Left, find_left
from torpor.vmhost.assignments import Assignments
from torpor.vmhost.loaded import Templates, open_image, owner_digest
from torpor.vmhost.pool import Limits, Pool
from torpor.vmhost.vm import RunningVm, received
from torpor.vmhost.worker import Rest, Worker
from torpor.vmprocess import (
    READY_PORTS_MAX,
    Boot,
    Origin,
    Prepare,
    Refused,
    Restore,
    VMProcess,
    launch,
)

DIRECTORY = "run/vm"
LOADED_MAX_BYTES = 2 << 30
"""Memory of templates that stay unpacked though no VM process is to be made of them."""
MEMORY_SHARE = 0.75
MEASURE_S = 1.0
ROOM_S = 2.0
"""How long a VM waits for room before whoever wants it is told to try again."""
ROOM_PAUSE_S = 0.01
WANT_S = 0.05
"""Between two looks for instances that could make room."""
MEMORY_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Between attempts to make a VM for which the host's kernel has no memory."""
DEFAULT_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
"""What an image need not say. HOME is the guest's to add, which knows the users in the image."""


class Host:
    """See torpor.controller.vm.VmHost."""

    def __init__(self, data_dir: Path, limits: Limits = Limits()) -> None:  # noqa: B008 -- immutable
        self._directory = data_dir / DIRECTORY
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._assignments: Assignments
        self._images = ImageStore(data_dir)
        self._limits = limits
        self._budget_bytes = limits.memory_bytes or int(_host_memory_bytes() * MEMORY_SHARE)
        self._used_bytes = 0
        self._wanted_s = 0.0
        self._on_shortage: Callable[[int], None] = lambda _instances: None
        self._workers: set[Worker] = set()
        self._tasks = Tasks()
        self._pool = Pool(limits, self._another, lambda template: self._warm(template))
        self._pool.room = self.has_room
        self._templates: Templates
        self._warm: WarmBases
        self._find: BaseFinder

    def begin(self, read: BaseReader, warm: WarmBases, find: BaseFinder) -> None:
        self._templates = Templates(self._images, read, self._helper)
        self._warm = warm
        self._find = find

    def start(self, on_shortage: Callable[[int], None]) -> None:
        """Begins what goes on in the background."""
        self._on_shortage = on_shortage
        self._pool.start()
        self._tasks.start(self._measure())

    # Starting -----------------------------------------------------------------------------------

    async def boot(
        self, machine: Machine, listener: VmListener, link: socket.socket | None
    ) -> VmProcess:
        await self._make_room()
        environment = {**DEFAULT_ENV, **machine.env}
        boot = Boot(
            owner=owner_digest(machine.owner),
            image=machine.image_digest.removeprefix("sha256:"),
            memory_limit_bytes=machine.memory_mb << 20,
            argv=machine.argv,
            envp=tuple(f"{name}={value}" for name, value in environment.items()),
            host_name=machine.hostname,
            uuid=machine.instance.replace("-", ""),
            workdir=machine.workdir,
            user=machine.user,
            template=True,
            ready_ports=machine.ports[:READY_PORTS_MAX],
            seed=None if machine.seed is None else machine.seed.hex(),
        )
        worker = await self._launched()
        try:
            self._assignments.assign(worker.path, machine.instance)
            image = open_image(machine.image)
            try:
                console = None if link is None else link.fileno()
                await worker.process.boot(boot, image=image, console=console)
            finally:
                os.close(image)
                if link is not None:
                    link.close()
            worker.listener = listener
            await worker.process.run()
        except (Refused, ConnectionError, OSError) as error:
            worker.listener = None
            worker.kill()
            raise ItemError(Code.FAILED, f"The VM could not be started: {error}") from error
        return self._running(worker, machine.instance, None, None)

    async def restore(
        self,
        who: Identity,
        state: State,
        listener: VmListener,
        link: socket.socket | None,
        sent: Callable[[], None] | None = None,
    ) -> VmProcess:
        try:
            return await self._restore(who, state, listener, link, sent)
        finally:
            if link is not None:
                link.close()

    async def _restore(
        self,
        who: Identity,
        state: State,
        listener: VmListener,
        link: socket.socket | None,
        sent: Callable[[], None] | None,
    ) -> VmProcess:
        template = state.template
        warm = state.warm or self._warm(template)
        worker: Worker | None
        try:
            worker = await self._pool.take(template, warm)
        except _EXPECTED as error:
            raise _failed(error) from error
        restore = Restore(
            uuid=who.instance.replace("-", ""),
            generation=who.generation,
            host_name=who.hostname,
            origin=_origin(state.origin),
            delta=None if state.delta is None else state.delta.digest.hex(),
        )
        console = None if link is None else link.fileno()
        told = _Once(sent)
        try:
            delta = None if state.delta is None else state.delta.file.number
            is_last = False
            while True:
                self._assignments.assign(worker.path, who.instance)
                worker.listener = listener
                worker.is_fresh = False
                try:
                    await worker.process.restore(restore, delta=delta, console=console, sent=told)
                except (Refused, ConnectionError) as error:
                    worker.listener = None
                    busy = isinstance(error, Refused) and error.code == "busy"
                    if isinstance(error, Refused) and error.code == "bad_snapshot":
                        if self._unassigned(worker):  # it rests as before
                            self._pool.give(worker)
                            worker = None
                        raise
                    worker.kill()
                    # One that died may have read from the link, which is of no use to another then.
                    if is_last or (told.is_done and not busy):
                        raise
                    # So many page tables differ that only a VM that has never run takes them, or
                    # the process has died: one more try, in a fresh one.
                    worker = await self._prepared(template, warm, is_awaited=True, never_run=busy)
                    is_last = True
                else:
                    worker.serving = True
                    if not worker.shares_template:
                        self._tasks.start(self._unpack(template))
                    return self._running(worker, who.instance, template, warm)
        except BaseException as error:
            if worker is not None:
                # Whether it runs as the instance by now is not known, so it must not.
                worker.listener = None
                worker.kill()
            self._pool.done(template.id)
            if not isinstance(error, _EXPECTED):
                raise
            raise _failed(error) from error

    def _running(
        self, worker: Worker, uuid: str, template: Base | None, warm: Base | None
    ) -> RunningVm:
        return RunningVm(worker, uuid, template, warm, self._free, self._templates.load)

    async def _launched(self) -> Worker:
        launched = await launch(self._directory / f"{secrets.token_hex(8)}.sock")
        worker = Worker.of_launched(launched)
        self._keep(worker)
        return worker

    def _keep(self, worker: Worker) -> None:
        worker.on_death = self._buried
        self._workers.add(worker)

    @contextlib.asynccontextmanager
    async def _helper(self) -> AsyncIterator[VMProcess]:
        worker = await self._launched()
        try:
            yield worker.process
        finally:
            worker.kill()

    async def _another(self, template: Base, warm: Base | None, is_awaited: bool) -> Worker:
        """One more process than there were. Raises BusyError where the host has no memory for it.

        KVM wants pieces of 64 KiB for a VM; a host that has none just then is making some.
        """
        for pause_s in (*MEMORY_PAUSES_S, None):
            await self._make_room()
            try:
                return await self._prepared(template, warm, is_awaited=is_awaited)
            except Refused as error:
                if error.code != "host":
                    raise
                if pause_s is None:
                    raise BusyError(f"The host cannot make another VM now: {error}") from error
            await asyncio.sleep(pause_s)
        raise AssertionError  # the last round ends the loop

    async def _prepared(
        self,
        template: Base,
        warm: Base | None,
        *,
        is_awaited: bool,
        never_run: bool = False,
    ) -> Worker:
        """A process at rest on a template and a warm base, or none.

        One that somebody waits for does not wait for its template to be unpacked.
        """
        worker = await self._launched()
        try:
            if not is_awaited:
                await self._templates.load(template)
            loaded = await self._templates.open(template)
            worker.shares_template = loaded.memory is not None
            loaded.used_s = asyncio.get_running_loop().time()
            warm_file = None if warm is None else await self._templates.load_warm(loaded, warm)
            prepare = Prepare(
                template=template.digest.hex(),
                warm_base=None if warm is None else warm.digest.hex(),
                never_run=never_run,
            )
            await worker.process.prepare(
                prepare,
                template=loaded.file.file.number,
                memory=loaded.memory,
                image=loaded.image,
                warm_base=None if warm_file is None else warm_file.file.number,
            )
        except BaseException:
            worker.kill()
            raise
        worker.template = template
        worker.rest = Rest.at(template, warm)
        worker.is_fresh = worker.shares_template and warm is not None
        worker.rested_cpu_ms = worker.cpu_time_ms()
        return worker

    async def _unpack(self, template: Base) -> None:
        """Unpacks a template for those to come."""
        with contextlib.suppress(*_EXPECTED):  # the next one meets it and says so
            await self._templates.load(template)

    # Coming back to the pool --------------------------------------------------------------------

    async def _free(self, worker: Worker) -> None:
        """A VM is stopped and its state is safe, or not wanted."""
        self._served(worker)
        # Before anybody can wake the instance in another one.
        is_reusable = self._limits.reuse and worker.shares_template
        if self._unassigned(worker) and worker.template is not None and is_reusable:
            # The state is safe, so nobody waits for this.
            self._tasks.start(self._reset(worker, worker.template))
        else:
            worker.kill()
            await worker.dead()

    async def _reset(self, worker: Worker, template: Base) -> None:
        """Puts a process back to rest, or ends it."""
        self._pool.comes(template)
        back: Worker | None = None
        try:
            if await worker.process.reset() and worker.rest == self._rest(template):
                worker.rested_cpu_ms = worker.cpu_time_ms()
                back = worker
        except (Refused, ConnectionError):
            pass
        finally:
            self._pool.came(template, back)
        if back is None:
            worker.kill()

    def _rest(self, template: Base) -> Rest:
        """Where processes of a template rest now."""
        return Rest.at(template, self._warm(template))

    def _buried(self, worker: Worker) -> None:
        self._workers.discard(worker)
        self._unassigned(worker)
        self._served(worker)

    def _unassigned(self, worker: Worker) -> bool:
        """Notes that a process is no instance; whether that is written down."""
        try:
            self._assignments.clear(worker.path)
        except OSError:
            return False
        return True

    def _served(self, worker: Worker) -> None:
        if worker.serving and worker.rest is not None:
            self._pool.done(worker.rest.template_id)
        worker.serving = False

    # Memory -------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether the VM processes are within their memory budget."""
        return self._used_bytes < self._budget_bytes

    async def _make_room(self) -> None:
        """Waits until another VM has room; idle ones make it. Raises BusyError after a while."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + ROOM_S
        while not self.has_room():
            if self._pool.evict_one():
                self._count()
                continue
            if loop.time() >= ends_s:
                raise BusyError(
                    f"VMs use {self._used_bytes >> 20} MiB, and {self._budget_bytes >> 20} are "
                    "allowed: try again later, or raise 'memory_mb' of [vms] in config.toml"
                )
            self._want_room()
            await asyncio.sleep(ROOM_PAUSE_S)
        # Those that wait as well are not to take the same room; measured anew before long.
        self._used_bytes += self._used_bytes // max(len(self._workers), 1)

    def _count(self) -> None:
        self._used_bytes = sum(worker.measured() for worker in self._workers if not worker.killed)

    def _want_room(self) -> None:
        """Has as many instances go to standby as their VMs have memory too much, on average."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._wanted_s + WANT_S:
            return
        self._wanted_s = now_s
        self._count()
        alive = sum(not worker.killed for worker in self._workers)
        excess_bytes = self._used_bytes - self._budget_bytes
        if excess_bytes >= 0 and alive:
            self._on_shortage(excess_bytes * alive // max(self._used_bytes, 1) + 1)

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_S)
            self._count()
            while not self.has_room() and self._pool.evict_one():
                self._count()
            if not self.has_room():
                self._want_room()
            self._unload()

    def _unload(self) -> None:
        """Lets go of templates that were not used lately, beyond what may stay unpacked."""
        wanted = self._pool.resting_of()
        idle = [one for one in self._templates.all() if not wanted.get(one.base.id)]
        size = sum(one.memory_bytes for one in idle)
        for one in sorted(idle, key=lambda one: one.used_s):
            if size <= LOADED_MAX_BYTES:
                return
            size -= one.memory_bytes
            self._templates.unload(one.base.id)

    # Bases --------------------------------------------------------------------------------------

    def warm_up(self, template: Base) -> None:
        """Makes the first process of a template before anybody asks for it."""
        self._pool.warm(template)

    async def learn(self, template: Base, deltas: list[Content]) -> Content:
        worker = await self._launched()
        try:
            file, memory = await self._templates.load(template)
            learnt = await worker.process.learn(
                template.digest.hex(),
                template=file.file.number,
                memory=memory,
                deltas=[delta.file.number for delta in deltas],
            )
            return received(learnt)
        except (Refused, OSError, TorporError) as error:
            raise ItemError(Code.FAILED, f"No warm base was learnt: {error}") from error
        finally:
            worker.kill()

    def in_use(self) -> set[int]:
        # What is only unpacked in memory is not: it is there for whoever comes.
        ids: set[int] = set()
        for worker in self._workers:
            if worker.rest is not None:
                ids.add(worker.rest.template_id)
                if worker.rest.warm_id is not None:
                    ids.add(worker.rest.warm_id)
        return ids

    # Restarts -----------------------------------------------------------------------------------

    async def adopt(self, listener: Callable[[str], VmListener | None]) -> list[Found]:
        found: list[Found] = []
        dying: list[Worker] = []
        # Not before this process is the only torpord: what another one writes still would be lost.
        self._assignments = Assignments(self._directory / "assignments")
        all_left = await find_left(self._directory)
        for left in all_left:
            if isinstance(left, Gone):
                uuid = self._assignments.of(left.path)
                its = None if uuid is None else listener(uuid)
                if its is not None:
                    if left.result.message:
                        its.output(f"torpor: {left.result.message}\n".encode())
                    its.ended(left.result)
        alive = [left for left in all_left if isinstance(left, Left)]
        self._assignments.keep(left.worker.path for left in alive)
        for left in alive:
            worker = left.worker
            self._keep(worker)
            adopted = await self._adopted(left, listener)
            if adopted is None:
                worker.listener = None
                worker.kill()
                dying.append(worker)
            else:
                found.append(adopted)
        await asyncio.gather(*(worker.dead() for worker in dying))
        return found

    async def _adopted(
        self, left: Left, listener: Callable[[str], VmListener | None]
    ) -> Found | None:
        worker, status = left.worker, left.status
        if status.instance is None or status.state not in ("running", "stopped"):
            return None
        try:
            uuid = str(UUID(status.instance.uuid))
            if uuid != self._assignments.of(worker.path):
                # It only waits for its reset, or it lies.
                return None
            template, warm = self._base(status.template), self._base(status.warm_base)
        except ValueError:  # no process of ours says that; it is ended
            return None
        if (template is None) is not (status.template is None):
            return None
        worker.listener = listener(uuid)
        if worker.listener is None:
            return None
        if template is not None:
            worker.template = template
            worker.rest = Rest.at(template, warm)
            self._pool.adopted(template)
            worker.serving = True
        return Found(
            uuid,
            status.instance.generation,
            self._running(worker, uuid, template, warm),
            template,
            stopped_for=status.stored_generation if status.state == "stopped" else None,
            is_stopped=status.state == "stopped",
            is_seeded=status.seeded,
        )

    def _base(self, digest: str | None) -> Base | None:
        return None if digest is None else self._find(bytes.fromhex(digest))

    async def close(self) -> None:
        await self._tasks.cancel()
        await self._pool.close()
        for worker in list(self._workers):
            if worker.listener is not None and not worker.killed:
                worker.leave()
            else:
                worker.kill()
        for worker in list(self._workers):
            if worker.killed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(worker.dead(), 5)
        self._templates.close()
        self._assignments.close()


_EXPECTED = (Refused, OSError, TorporError)
"""What may become of a restore."""


def _failed(error: Exception) -> ItemError:
    if isinstance(error, ItemError):
        return error
    return ItemError(Code.FAILED, f"The state could not be restored: {error}")


class _Once:
    """Calls `what` the first time that it is called, and says whether it was."""

    def __init__(self, what: Callable[[], None] | None) -> None:
        self._what = what
        self.is_done = False

    def __call__(self) -> None:
        if not self.is_done and self._what is not None:
            self.is_done = True
            self._what()


def _origin(text: str) -> Origin | None:
    uuid, _, generation = text.partition("/")
    return Origin(uuid=uuid.replace("-", ""), generation=int(generation)) if uuid else None


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

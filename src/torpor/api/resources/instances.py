"""Instances."""

import asyncio
import base64
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from starlette.responses import Response

from torpor.api import listing, rendering
from torpor.api.dispatch import JSON, RequestError, failed
from torpor.api.listing import ListQuery, OneQuery, References
from torpor.api.operations import MAX_ITEMS, Call, operation
from torpor.api.resources.load import traffic
from torpor.api.wire import (
    HistoryAnswer,
    HistoryEntry,
    InstanceAnswer,
    LatencyBucket,
    LogAnswer,
    MetricsAnswer,
    RangeAnswer,
    TransitionAnswer,
    UpdatedAnswer,
    moment,
)
from torpor.controller import Code, ItemError
from torpor.controller.errors import invalid
from torpor.controller.events import now_ms
from torpor.controller.groups import ServiceGroups
from torpor.controller.lifecycle import STOP_DRAIN_MAX_MS
from torpor.controller.links import Traffic, Waiting
from torpor.controller.live import counted
from torpor.controller.model import WAKEUP_BUCKETS_MS, facts_of
from torpor.controller.requests import CreateInstance, Int32, Reference, Seconds
from torpor.store import InstanceRow, Kind, State

PATH = "/v1/instances"
MAX_WAIT_S = 86400
LOG_LIMIT_BYTES = 1 << 20
SUSPEND_DRAIN_MAX_MS = 10_000
"""How long requests in flight are waited for at most, before a standby that was asked for."""
_DEPRECATED = "'wait_timeout_ms' is deprecated: use 'timeout_s'"
_NO_PRIORITY = "'sched_priority' is recorded, and has no effect: all instances run alike"
_NO_PACKETS = "no packets"

PROPS = Literal[
    "image",
    "args",
    "env",
    "memory_mb",
    "vcpus",
    "scale_to_zero",
    "tags",
    "delete_lock",
    "schedules",
    "autokill",
    "hostname",
    "roms",
    "dependencies",
    "sched_priority",
    "plugins",
    "annotations",
]


class DeleteItem(Reference, frozen=True, kw_only=True):
    """What to delete."""

    timeout_s: Seconds | None = None
    dont_retain: bool | None = None
    """Nothing is retained here, so it goes without saying."""


class StartItem(Reference, frozen=True, kw_only=True):
    """What to start, and how long to wait until it runs."""

    timeout_s: Seconds | None = None
    wait_timeout_ms: Int32 | None = None


class StopItem(Reference, frozen=True, kw_only=True):
    """What to stop, and how."""

    force: bool | None = None
    drain_timeout_ms: Int32 | None = None
    quick: bool | None = None
    ifstate: str | None = None
    dump: bool | None = None


class SuspendItem(Reference, frozen=True, kw_only=True):
    """What to put into standby."""

    drain_timeout_ms: Int32 | None = None


class WaitItem(Reference, frozen=True, kw_only=True):
    """What to wait for."""

    state: State = "running"
    timeout_s: Seconds | None = None
    timeout_ms: Int32 | None = None


class LogItem(Reference, frozen=True, kw_only=True):
    """Which part of which log."""

    offset: int | None = None
    limit: int | None = None


class UpdateItem(Reference, frozen=True, kw_only=True):
    """One change of one property."""

    id: str | None = None
    prop: PROPS
    op: Literal["set", "add", "del"]
    value: Any = None


class LogQuery(References, frozen=True, kw_only=True):
    """Parameters that name logs; the part is taken from the body."""

    offset: list[int] = []  # noqa: RUF012 -- msgspec copies it
    limit: list[int] = []  # noqa: RUF012


def find(call: Call, item: Any, kind: Kind = "instance") -> InstanceRow:
    """The object that an item names, of this principal."""
    return call.service.controller.find(call.principal.owner, kind, item)


@operation(
    "POST", PATH, "create_instance", "Create instances", group="Instances", key="instances",
    answer=InstanceAnswer, body=CreateInstance, array=True, body_needed=True, support="partial",
    note="no volumes, roms, plugins, schedules, dependencies, network_interfaces, gpus, type full",
)  # fmt: skip
async def create_instance(call: Call) -> list[Any]:
    controller = call.service.controller
    answers = await controller.create(call.principal.owner, call.body)
    waits: list[float] = []
    for request in call.body:
        if request.sched_priority not in (None, "normal"):
            call.warn(_NO_PRIORITY)
        waits += [_wait_s(call, request)] * ((request.replicas or 0) + 1)

    async def finish(answer: InstanceRow | ItemError, wait_s: float) -> Any:
        if isinstance(answer, ItemError):
            return failed(answer)
        if wait_s:
            state, reached = await controller.wait_until_started(answer, _bounded(wait_s))
            if not reached:
                over = state in ("stopped", "deleted")
                message = "The instance stopped" if over else "The wait for 'running' timed out"
                return TransitionAnswer(
                    status="error",
                    message=message,
                    uuid=answer.uuid,
                    name=answer.name,
                    state=state,
                )
        current = call.service.store.instances.by_id(answer.id)
        return rendering.instance(call.service, current or answer)

    if not any(waits):
        return [await finish(answer, 0) for answer in answers]
    return list(await asyncio.gather(*map(finish, answers, waits)))


@operation("GET", PATH, "get_instances", "List instances", group="Instances", key="instances",
           answer=InstanceAnswer, query=ListQuery, body=Reference, array=True)  # fmt: skip
@operation("GET", PATH + "/{uuid:str}", "get_instance_by_uuid", "Get one", group="Instances",
           key="instances", answer=InstanceAnswer, query=OneQuery)  # fmt: skip
async def get_instances(call: Call) -> list[Any]:
    return await listing.instances(call, "instance")


@operation("PATCH", PATH, "update_instances", "Change properties of instances", group="Instances",
           form="each", key="instances", answer=UpdatedAnswer, body=UpdateItem, array=True,
           body_needed=True, support="partial",
           note="no schedules, roms, dependencies, plugins")  # fmt: skip
@operation("PATCH", PATH + "/{uuid:str}", "update_instance_by_uuid", "Change an instance",
           group="Instances", form="each", key="instances", answer=UpdatedAnswer, body=UpdateItem,
           array=True, body_needed=True, support="partial",
           note="no schedules, roms, dependencies, plugins")  # fmt: skip
async def update_instance(call: Call, item: UpdateItem) -> UpdatedAnswer:
    return await update(call, item, "instance")


async def update(call: Call, item: Any, kind: Kind) -> UpdatedAnswer:
    """Changes one property of an instance, template or checkpoint."""
    row = find(call, item, kind)
    if item.prop == "sched_priority" and item.value not in (None, "normal"):
        call.warn(_NO_PRIORITY)
    await call.service.controller.update(row, item.prop, item.op, item.value)
    return UpdatedAnswer(status="success", uuid=row.uuid, name=row.name, id=item.id)


@operation("DELETE", PATH, "delete_instances", "Delete instances", group="Instances", form="each",
           key="instances", answer=TransitionAnswer, body=DeleteItem, array=True,
           body_needed=True)  # fmt: skip
@operation("DELETE", PATH + "/{uuid:str}", "delete_instance_by_uuid", "Delete an instance",
           group="Instances", form="each", key="instances", answer=TransitionAnswer,
           body=DeleteItem)  # fmt: skip
async def delete_instance(call: Call, item: DeleteItem) -> TransitionAnswer:
    return await delete(call, item, "instance")


async def delete(call: Call, item: Any, kind: Kind) -> TransitionAnswer:
    """Deletes an instance, template or checkpoint."""
    row = find(call, item, kind)
    previous = await call.service.controller.delete(row)
    return TransitionAnswer(
        status="success",
        uuid=row.uuid,
        name=row.name,
        previous_state=previous,
    )


@operation("PUT", PATH + "/start", "start_instances", "Start instances", group="Instances",
           form="each", key="instances", answer=TransitionAnswer, body=StartItem, array=True,
           body_needed=True)  # fmt: skip
@operation("PUT", PATH + "/{uuid:str}/start", "start_instance_by_uuid", "Start an instance",
           group="Instances", form="each", key="instances", answer=TransitionAnswer,
           body=StartItem)  # fmt: skip
async def start_instance(call: Call, item: StartItem) -> TransitionAnswer:
    controller = call.service.controller
    row = find(call, item)
    previous = await controller.start(call.principal.owner, row)
    timeout_s = _wait_s(call, item)
    state, reached = controller.lifecycle.lives.state(row), True
    if timeout_s:
        state, reached = await controller.wait_until_started(row, _bounded(timeout_s))
    if state == "stopped" and not reached:
        return _transition(row, state, previous, "The instance ended before it was ready")
    return _transition(row, state, previous, "" if reached else _not_reached(state, "running"))


@operation("PUT", PATH + "/stop", "stop_instances", "Stop", group="Instances", form="each",
           key="instances", answer=TransitionAnswer, body=StopItem, array=True, body_needed=True,
           support="partial", note="no dump")  # fmt: skip
@operation("POST", PATH + "/stop", "stop_instances_post", "Stop instances (old verb)",
           group="Instances", form="each", key="instances", answer=TransitionAnswer, body=StopItem,
           array=True, body_needed=True, support="partial", note="as PUT")  # fmt: skip
@operation("PUT", PATH + "/{uuid:str}/stop", "stop_instance_by_uuid", "Stop an instance",
           group="Instances", form="each", key="instances", answer=TransitionAnswer, body=StopItem,
           support="partial", note="no dump")  # fmt: skip
async def stop_instance(call: Call, item: StopItem) -> TransitionAnswer:
    if item.force and item.drain_timeout_ms is not None:
        raise ItemError(Code.CONFLICTING, "Cannot specify 'drain_timeout_ms' when 'force' is set")
    if item.dump:
        raise ItemError(Code.NOT_SUPPORTED, "'dump': not supported yet")
    row = find(call, item)
    lifecycle = call.service.controller.lifecycle
    state = lifecycle.lives.state(row)
    if item.ifstate is not None and item.ifstate != state:
        raise ItemError(Code.WRONG_STATE, f"The instance is {state}, not '{item.ifstate}'")
    drain_ms = item.drain_timeout_ms or 0
    if not 0 <= drain_ms <= STOP_DRAIN_MAX_MS:
        drain_ms = STOP_DRAIN_MAX_MS
    previous, now = await lifecycle.stop(row, force=bool(item.force), drain_ms=drain_ms)
    return _transition(row, now, previous)


@operation("PUT", PATH + "/suspend", "suspend_instances", "Put instances into standby",
           group="Instances", form="each", key="instances", answer=TransitionAnswer,
           body=SuspendItem, array=True, body_needed=True)  # fmt: skip
@operation("POST", PATH + "/suspend", "suspend_instances_post",
           "Put instances into standby (old verb)", group="Instances", form="each",
           key="instances", answer=TransitionAnswer, body=SuspendItem, array=True,
           body_needed=True)  # fmt: skip
@operation("PUT", PATH + "/{uuid:str}/suspend", "suspend_instance_by_uuid",
           "Put an instance into standby", group="Instances", form="each", key="instances",
           answer=TransitionAnswer, body=SuspendItem)  # fmt: skip
async def suspend_instance(call: Call, item: SuspendItem) -> TransitionAnswer:
    row = find(call, item)
    drain_ms = item.drain_timeout_ms
    if drain_ms is None or not 0 <= drain_ms < SUSPEND_DRAIN_MAX_MS:
        drain_ms = SUSPEND_DRAIN_MAX_MS
    lifecycle = call.service.controller.lifecycle
    previous, state = await lifecycle.suspend(row, "api", drain_ms=drain_ms)
    return _transition(row, state, previous)


@operation("GET", PATH + "/wait", "wait_instances", "Wait for a state", group="Instances",
           form="each", key="instances", answer=TransitionAnswer, query=References, body=WaitItem,
           array=True, parallel=MAX_ITEMS)  # fmt: skip
@operation("GET", PATH + "/{uuid:str}/wait", "wait_instance_by_uuid", "Wait for a state",
           group="Instances", form="each", key="instances", answer=TransitionAnswer,
           body=WaitItem)  # fmt: skip
async def wait_instance(call: Call, item: WaitItem) -> TransitionAnswer:
    row = find(call, item)
    timeout_s: float = -1
    if item.timeout_s is not None:
        timeout_s = item.timeout_s
    elif item.timeout_ms is not None:
        timeout_s = item.timeout_ms / 1000
    state, reached = await call.service.controller.wait(row, item.state, _bounded(timeout_s))
    return _transition(row, state, None, "" if reached else _not_reached(state, item.state))


@operation("GET", PATH + "/log", "get_instance_logs", "Read console logs", group="Instances",
           form="each", key="instances", answer=LogAnswer, query=LogQuery, body=LogItem,
           array=True)  # fmt: skip
@operation("GET", PATH + "/{uuid:str}/log", "get_instance_logs_by_uuid", "Read a console log",
           group="Instances", form="each", key="instances", answer=LogAnswer,
           body=LogItem)  # fmt: skip
async def get_log(call: Call, item: LogItem) -> LogAnswer:
    row = find(call, item)
    console = call.service.controller.console
    first, last = console.bounds(row.id)
    offset = first if item.offset is None else item.offset
    if item.limit is not None and item.limit < 0:
        raise invalid("limit", "must not be negative")
    limit = min(LOG_LIMIT_BYTES if item.limit is None else item.limit, LOG_LIMIT_BYTES)
    start = min(max(last + offset if offset < 0 else offset, first), last)
    output = console.read(row.id, start, min(start + limit, last))
    return LogAnswer(
        status="success",
        uuid=row.uuid,
        name=row.name,
        output=base64.b64encode(output).decode(),
        available=RangeAnswer(start=first, end=last),
        range=RangeAnswer(start=start, end=start + len(output)),
        state=call.service.controller.lifecycle.lives.state(row),
    )


class _Queued:
    """How many wait at the proxy for each instance."""

    def __init__(self, waiting: Iterable[Waiting], groups: ServiceGroups) -> None:
        self._of_instance: Counter[str] = Counter()
        self._of_service: Counter[int] = Counter()
        for each in waiting:
            if each.instance is not None:
                self._of_instance[each.instance] += each.requests
            elif each.host is not None and (service_id := groups.route(each.host)) is not None:
                self._of_service[service_id] += each.requests

    def of(self, row: InstanceRow) -> int:
        """Those that wait for it, or for whoever of its service is there first."""
        of_service = 0 if row.service_id is None else self._of_service[row.service_id]
        return self._of_instance[row.uuid] + of_service


async def _queued(call: Call, counters: dict[str, Any] | None) -> _Queued | None:
    """None where nobody knows."""
    if counters is None:
        return None
    controller = call.service.controller
    waiting: list[Waiting] = []
    if counters["waiting"]:
        try:
            waiting = await controller.links.waiting()
        except (OSError, TimeoutError):
            return None
    return _Queued(waiting, controller.groups)


@operation("GET", PATH + "/metrics", "get_instance_metrics", "Metrics of instances",
           group="Instances", key="instances", answer=MetricsAnswer, query=References,
           body=Reference, array=True, support="partial",
           note=_NO_PACKETS)  # fmt: skip
@operation("GET", PATH + "/{uuid:str}/metrics", "get_instance_metrics_by_uuid",
           "Metrics of an instance", group="Instances", key="instances", answer=MetricsAnswer,
           query=References, support="partial",
           note=_NO_PACKETS)  # fmt: skip
async def get_metrics(call: Call) -> Any:
    named = listing.references(call)
    links, counters = await traffic(call)
    queued = await _queued(call, counters)
    answers: list[Any] = []
    if named is None:  # all that run: a million that sleep use nothing
        lives = call.service.controller.lifecycle.lives.all()
        mine = [live.row for live in lives if live.row.owner_id == call.principal.owner.id]
        answers = [await _metrics(call, row, links, queued) for row in mine]
    for reference in named or ():
        try:
            answers.append(await _metrics(call, find(call, reference), links, queued))
        except ItemError as error:
            answers.append(failed(error, reference))
    if JSON in call.request.headers.get("accept", ""):
        return answers
    return Response(_prometheus(answers), media_type="text/plain; version=0.0.4")


async def _metrics(
    call: Call,
    row: InstanceRow,
    links: dict[str, dict[str, int]],
    queued: _Queued | None,
) -> MetricsAnswer:
    live = call.service.controller.lifecycle.lives.get(row.id)
    facts = facts_of(row.facts) if live is None else live.facts
    state = row.state if live is None else live.state
    running = live is not None and live.vm is not None
    answer = MetricsAnswer(
        status="success",
        uuid=row.uuid,
        name=row.name,
        state=state,
        rss_bytes=0,
        cpu_time_ms=0,
        boot_time_us=facts.boot_time_us,
        start_count=facts.start_count,
        uptime_ms=max(now_ms() - facts.started_ms, 0) if running else 0,
    )
    if live is not None and live.vm is not None:
        usage = await live.vm.query()
        answer.rss_bytes, answer.cpu_time_ms = usage.rss_bytes, usage.cpu_time_ms
    traffic = Traffic()
    link = links.get(row.uuid)
    if link is not None and live is not None and link["generation"] == live.link_generation:
        answer.nconns, answer.nreqs = link["connections"], link["in_flight"]
        traffic = Traffic(link["requests"], link["rx_bytes"], link["tx_bytes"])
    facts = counted(facts, traffic)
    answer.rx_bytes, answer.tx_bytes, answer.ntotal = facts.rx_bytes, facts.tx_bytes, facts.requests
    if queued is not None:
        answer.nqueued = queued.of(row)
    counts = [*facts.wakeups, *[0] * (len(WAKEUP_BUCKETS_MS) + 1 - len(facts.wakeups))]
    answer.wakeup_latency = [
        LatencyBucket(count=count, bucket_ms=bucket_ms)
        for bucket_ms, count in zip((*WAKEUP_BUCKETS_MS, None), counts, strict=True)
    ]
    answer.wakeup_latency_sum = facts.wakeups_us // 1000
    return answer


_STATE_NUMBERS = {
    "stopped": 0,
    "starting": 1,
    "running": 2,
    "draining": 3,
    "stopping": 4,
    "standby": 5,
    "template": 6,
    "deleted": 7,
}
_GAUGES = ("rss_bytes", "cpu_time_ms", "boot_time_us", "rx_bytes", "tx_bytes", "nconns", "nreqs",
           "nqueued", "ntotal", "start_count", "uptime_ms")  # fmt: skip


def _prometheus(answers: list[Any]) -> bytes:
    lines = ["# TYPE instance_state gauge"]
    good = [answer for answer in answers if isinstance(answer, MetricsAnswer)]
    lines += [
        f'instance_state{{instance_uuid="{each.uuid}"}} {_STATE_NUMBERS[each.state or "stopped"]}'
        for each in good
    ]
    for name in _GAUGES:
        lines.append(f"# TYPE instance_{name} gauge")
        for each in good:
            value = getattr(each, name)
            if value is not None:
                lines.append(f'instance_{name}{{instance_uuid="{each.uuid}"}} {value}')
    lines.append("# TYPE instance_wakeup_latency histogram")
    for each in good:
        total = 0
        for bucket in each.wakeup_latency or ():
            total += bucket.count
            bound = "+Inf" if bucket.bucket_ms is None else bucket.bucket_ms
            labels = f'instance_uuid="{each.uuid}",le="{bound}"'
            lines.append(f"instance_wakeup_latency_bucket{{{labels}}} {total}")
        which = f'{{instance_uuid="{each.uuid}"}}'
        lines.append(f"instance_wakeup_latency_sum{which} {each.wakeup_latency_sum}")
        lines.append(f"instance_wakeup_latency_count{which} {total}")
    return ("\n".join(lines) + "\n").encode()


@operation("GET", PATH + "/history", "get_instance_history", "Checkpoints behind instances",
           group="Instances", form="each", key="instances", answer=HistoryAnswer,
           query=References, body=Reference, array=True)  # fmt: skip
@operation("GET", PATH + "/{uuid:str}/history", "get_instance_history_by_uuid",
           "Checkpoints behind an instance", group="Instances", form="each", key="instances",
           answer=HistoryAnswer)  # fmt: skip
async def get_history(call: Call, item: Reference) -> HistoryAnswer:
    return history(find(call, item))


def history(row: InstanceRow) -> HistoryAnswer:
    """The lineage of an instance or checkpoint."""
    entries = [
        HistoryEntry(uuid=each.uuid, name=each.name, created_at=moment(each.created_ms))  # type: ignore[arg-type]
        for each in facts_of(row.facts).history
    ]
    return HistoryAnswer(status="success", uuid=row.uuid, name=row.name, history=entries)


def _wait_s(call: Call, item: CreateInstance | StartItem) -> float:
    """How long a start is waited for, by the newer way to say it or the older."""
    if item.wait_timeout_ms is not None:
        call.warn(_DEPRECATED)
        if item.timeout_s is None:
            return item.wait_timeout_ms / 1000
    return float(item.timeout_s or 0)


def _bounded(timeout_s: float) -> float:
    if timeout_s > MAX_WAIT_S:
        raise RequestError(400, f"A wait must be at most {MAX_WAIT_S} s, or -1 for ever")
    return timeout_s


def _not_reached(state: State, wanted: State) -> str:
    if state == "deleted":
        return "The instance was deleted"
    return f"The wait for '{wanted}' timed out: the instance is {state}"


def _transition(
    row: InstanceRow, state: State, previous: State | None, problem: str = ""
) -> TransitionAnswer:
    return TransitionAnswer(
        status="error" if problem else "success",
        message=problem or None,
        uuid=row.uuid,
        name=row.name,
        state=state,
        previous_state=previous,
    )

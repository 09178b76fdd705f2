"""Rows of the store, with what is live of them, as answers."""

from torpor.api.service import Service
from torpor.api.wire import (
    DomainAnswer,
    GroupOfInstance,
    InstanceAnswer,
    InstanceOfGroup,
    RestartAnswer,
    ServiceGroupAnswer,
    SnapshotAnswer,
    UpdateAnswer,
    moment,
    scale_to_zero,
)
from torpor.controller.events import now_ms
from torpor.controller.model import config_of, facts_of, service_of
from torpor.store import InstanceRow, ServiceRow

MAX_LISTED_INSTANCES = 1000
"""Instances that a service group's answer names."""


def instance(service: Service, row: InstanceRow, *, details: bool = True) -> InstanceAnswer:
    """An instance, template or checkpoint as it is now."""
    live = service.controller.lifecycle.lives.get(row.id)
    state = row.state if live is None else live.state
    if not details:
        return InstanceAnswer(
            status="success",
            uuid=row.uuid,
            name=row.name,
            state=state,
            created_at=moment(row.created_ms),
        )
    config = config_of(row.config) if live is None else live.config
    facts = facts_of(row.facts) if live is None else live.facts
    running = state in ("running", "draining", "stopping")
    answer = InstanceAnswer(
        status="success",
        uuid=row.uuid,
        name=row.name,
        created_at=moment(row.created_ms),
        state=state,
        private_fqdn=f"{row.name}.internal",
        image=config.image,
        memory_mb=row.memory_mb,
        vcpus=row.vcpus,
        args=list(config.args or ()),
        env=config.env,
        start_count=facts.start_count,
        restart_count=facts.restart_count,
        started_at=moment(facts.started_ms),
        stopped_at=None if running else moment(facts.stopped_ms),
        uptime_ms=max(now_ms() - facts.started_ms, 0) if running else 0,
        boot_time_us=facts.boot_time_us or None,
        stop_reason=None if running else facts.stop_reason,
        exit_code=None if running else facts.exit_code,
        stop_code=None if running else facts.stop_code,
        restart_policy=config.restart_policy,
        scale_to_zero=scale_to_zero(config.scale_to_zero),
        tags=list(row.tags),
        annotations=config.annotations or None,
        snapshot=SnapshotAnswer(uuid=row.uuid) if row.state == "standby" else None,
        delete_lock=config.delete_lock,
        features=list(config.features) or None,
        sched_priority=config.sched_priority,
        hostname=config.hostname or row.name[:63],
    )
    if row.kind == "template":
        answer.template_autokill = config.autokill
    elif row.kind == "checkpoint":
        answer.checkpoint_autokill = config.autokill
    else:
        answer.autokill = config.autokill
    if facts.updates:
        answer.updates = [
            UpdateAnswer(
                prop=each.prop,
                op=each.op,
                value=each.value,
                status=each.status,
                error=each.error or None,
            )
            for each in facts.updates
        ]
    if live is not None and live.restart is not None:
        next_at = moment(live.restart_at_ms)
        assert next_at is not None  # noqa: S101 -- a planned restart has a time
        answer.restart = RestartAnswer(attempt=live.attempt, next_at=next_at)
    if row.service_id is not None:
        group = service.store.services.by_id(row.service_id)
        if group is not None:
            answer.service_group = GroupOfInstance(
                uuid=group.uuid,
                name=group.name,
                domains=[DomainAnswer(fqdn=fqdn) for fqdn in group.domains],
            )
    return answer


def service_group(service: Service, row: ServiceRow) -> ServiceGroupAnswer:
    """A service group with its instances."""
    config = service_of(row.document)
    instances = service.store.instances.of_service(row.id)[:MAX_LISTED_INSTANCES]
    return ServiceGroupAnswer(
        status="success",
        uuid=row.uuid,
        name=row.name,
        created_at=moment(row.created_ms),
        persistent=config.persistent,
        soft_limit=config.soft_limit,
        hard_limit=config.hard_limit,
        services=list(config.services),
        domains=[DomainAnswer(fqdn=fqdn) for fqdn in row.domains],
        instances=[InstanceOfGroup(uuid=each.uuid, name=each.name) for each in instances],
        autokill=config.autokill,
    )

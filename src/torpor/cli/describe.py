"""An instance with all that there is to know of it, as lines for a person."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from torpor.cli.output import cell
from torpor.cli.quantities import lasting
from torpor.controller.model import (
    APPLICATION_EXIT,
    CRASH,
    FORCED_BY_USER,
    KILLED_FOR_USER,
    LOST,
    NO_IMAGE,
    OUT_OF_MEMORY,
    SCALED_TO_ZERO,
    STOPPED_BY_USER,
)

_WIDTH = 15
_REASONS = {
    STOPPED_BY_USER: "it was told to",
    KILLED_FOR_USER: "it was told to, and was killed as it did not",
    FORCED_BY_USER: "it was killed as asked",
    SCALED_TO_ZERO: "it sleeps",
    APPLICATION_EXIT: "its program ended",
    CRASH: "its program was killed, or its kernel failed",
    LOST: "its VM was lost",
}


def described(instance: Mapping[str, Any]) -> list[str]:
    """The lines of an instance as the API has it."""
    return [f"{name + ':':<{_WIDTH}}{value}" for name, value in _facts(instance)]


def _facts(instance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("name", "uuid", "state", "image"):
        yield name, cell(instance.get(name))
    yield "memory", f"{instance.get('memory_mb')} MiB"
    if instance.get("args"):
        yield "arguments", shlex.join(instance["args"])
    for number, (variable, value) in enumerate(sorted((instance.get("env") or {}).items())):
        yield "" if number else "environment", f"{variable}={shlex.quote(value)}"
    for name in ("created", "started", "stopped"):
        if instance.get(f"{name}_at") is not None:
            yield name, cell(instance[f"{name}_at"])
    if instance.get("uptime_ms"):
        yield "up", lasting(instance["uptime_ms"])
    if instance.get("stop_reason") is not None:
        yield "stop reason", _end(instance)
    starts, restarts = instance.get("start_count") or 0, instance.get("restart_count") or 0
    yield "starts", f"{starts}, {restarts} of them by itself" if restarts else str(starts)
    coming = instance.get("restart")
    again = f", attempt {coming['attempt']} at {cell(coming['next_at'])}" if coming else ""
    yield "restart", f"{instance.get('restart_policy')}{again}"
    yield "scale to zero", _sleep(instance.get("scale_to_zero") or {})
    group = instance.get("service_group")
    if group:
        yield "service", group["name"]
        yield "hosts", cell([domain["fqdn"] for domain in group["domains"]])
    if instance.get("tags"):
        yield "tags", cell(instance["tags"])
    for update in instance.get("updates") or ():
        error = f": {update['error']}" if update.get("error") else ""
        yield "change", f"{update['op']} {update['prop']}, {update['status']}{error}"
    if instance.get("delete_lock"):
        yield "delete lock", "on"


def _end(instance: Mapping[str, Any]) -> str:
    """Why an instance stopped, with the numbers that the API has for it."""
    reason, code, status = (
        instance.get(name) for name in ("stop_reason", "stop_code", "exit_code")
    )
    words = _REASONS.get(reason or 0, "unknown")
    if code == OUT_OF_MEMORY:
        words = "it was out of memory"
    elif (reason, code) == NO_IMAGE:
        words = "its image is not there"
    numbers = [f"reason {reason}"]
    if code is not None:
        numbers.append(f"stop code 0x{code:08X}")
    if status is not None:
        numbers.append(f"exit status {status}")
    return f"{words} ({', '.join(numbers)})"


def _sleep(policy: Mapping[str, Any]) -> str:
    if policy.get("policy", "off") == "off" and not policy.get("stateful"):
        return "off"
    words = [policy["policy"], "stateful" if policy.get("stateful") else "keeps no memory"]
    if policy["policy"] != "off":
        words.append(f"after {lasting(policy['cooldown_time_ms'])}")
    if policy.get("wake_on_timer"):
        words.append("wakes for its timers")
    return ", ".join(words)

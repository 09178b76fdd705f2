"""PATCH: changing one property of an instance, now or when it stops."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from torpor.controller.errors import invalid
from torpor.controller.model import Autokill, Config, PendingUpdate, ScaleToZero
from torpor.controller.rules import (
    MEMORY_MB,
    check_annotations,
    check_args,
    check_autokill,
    check_env,
    check_hostname,
    check_memory,
    check_vcpus,
)

AT_ONCE = frozenset({"delete_lock", "autokill"})
"""Properties of the configuration that a running program cannot notice."""


def change(config: Config, prop: str, op: str, value: Any) -> Config:
    """The configuration with one property changed. Raises ItemError naming property and rule.

    `set` without a value clears; `add` merges into a list or mapping, `del` removes members.
    """
    if prop not in _EDITS:
        raise invalid("prop", f"is '{prop}': not supported yet")
    field, kind, clear, check = _EDITS[prop]
    if op == "set" and value is None:
        return msgspec.structs.replace(config, **{field: clear})
    current = getattr(config, field)
    if op != "set":
        value = _merged(prop, op, current, value)
    try:
        converted = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise invalid("value", f"of '{prop}': {error}") from error
    if check is not None:
        check(converted)
    return msgspec.structs.replace(config, **{field: converted})


def apply_pending(
    config: Config, updates: Iterable[PendingUpdate]
) -> tuple[Config, tuple[PendingUpdate, ...]]:
    """Applies what waited for the stop; what fails is kept with its error."""
    failed = []
    for update in updates:
        if update.status == "failed":
            failed.append(update)
            continue
        try:
            config = change(config, update.prop, update.op, update.value)
            if update.image_digest:
                config = msgspec.structs.replace(config, image_digest=update.image_digest)
        except Exception as error:  # noqa: BLE001, RUF100 -- it passed once; a stop must not fail
            failed.append(msgspec.structs.replace(update, status="failed", error=str(error)))
    return config, tuple(failed)


def _merged(prop: str, op: str, current: Any, value: Any) -> Any:
    if isinstance(current, dict):
        if op == "add":
            if not isinstance(value, dict):
                raise invalid("value", f"of '{prop}' must be an object")
            return {**current, **value}
        names = _strings(prop, value)
        return {name: its for name, its in current.items() if name not in names}
    if isinstance(current, tuple):
        names = _strings(prop, value)
        if op == "add":
            return [*current, *(name for name in names if name not in current)]
        return [name for name in current if name not in names]
    raise invalid("op", f"is '{op}': '{prop}' can only be set")


def _strings(prop: str, value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else list(value or ())
    if not all(isinstance(name, str) for name in found):
        raise invalid("value", f"of '{prop}' must be strings")
    return found


_EDITS: dict[str, tuple[str, Any, Any, Callable[[Any], None] | None]] = {
    "image": ("image", str, "", None),
    "args": ("args", tuple[str, ...], None, check_args),
    "memory_mb": ("memory_mb", int, 128, lambda value: check_memory(value, *MEMORY_MB)),
    "vcpus": ("vcpus", int, 1, check_vcpus),
    "env": ("env", dict[str, str], {}, check_env),
    "scale_to_zero": ("scale_to_zero", ScaleToZero, None, None),
    "delete_lock": ("delete_lock", bool, False, None),
    "autokill": (
        "autokill",
        Autokill,
        None,
        lambda value: check_autokill(value, takes_requests=True),
    ),
    "hostname": ("hostname", str, "", check_hostname),
    "annotations": ("annotations", dict[str, str], {}, check_annotations),
    "sched_priority": ("sched_priority", Literal["normal", "medium", "high"], "normal", None),
}
"""Property: the field, its type, what clears it, and a check of the value."""

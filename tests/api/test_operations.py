"""Every operation of the SDK, found by introspection, is in the table and answers as it says."""

import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import BaseModel
from unikraft_cloud.api.build import BuildApi
from unikraft_cloud.api.controlplane import ControlPlaneApi
from unikraft_cloud.api.platform import PlatformApi
from unikraft_cloud.core.errors import UnikraftCloudError

from torpor.api.operations import REGISTRY, Operation
from torpor.api.resources import __all__ as modules

pytestmark = pytest.mark.anyio

SURFACES = {"platform": PlatformApi, "controlplane": ControlPlaneApi, "build": BuildApi}
UUID = "5f0c9f57-6b0c-4c53-9d38-2f2a5a3b9d11"
ALIASES = {"list_images": "get_images"}
"""One path of two surfaces (dispatched by its parameters)."""


def api_classes() -> Iterator[tuple[str, str, type]]:
    """Surface, attribute and class of every plumbing client that the SDK has."""
    for surface, group in SURFACES.items():
        source = inspect.getsource(group)
        namespace = vars(inspect.getmodule(group))
        for attribute, name in re.findall(r"self\.(\w+) = (\w+)\(", source):
            kind = namespace.get(name)
            if inspect.isclass(kind) and name.endswith("Api"):
                yield surface, attribute, kind


def operations() -> list[tuple[str, str, str]]:
    """Surface, attribute and method of every operation."""
    own = set()
    for _, _, kind in api_classes():
        own |= {(kind, name) for name in vars(kind) if not name.startswith("_")}
    return [
        (surface, attribute, name)
        for surface, attribute, kind in api_classes()
        for name in vars(kind)
        if (kind, name) in own and callable(getattr(kind, name))
    ]


def test_introspection_finds_what_the_sdk_has() -> None:
    found = operations()
    assert len(found) >= 95
    assert ("platform", "instances", "create_instance") in found
    assert ("build", "builds", "get_build") in found


@pytest.mark.parametrize("name", sorted({name for _, _, name in operations()}))
def test_the_table_has_every_operation(name: str) -> None:
    assert modules
    known = {operation.id for operation in REGISTRY.operations}
    assert ALIASES.get(name, name) in known


def example(kind: Any) -> Any:
    """The smallest value that the SDK takes for a type."""
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        hints = get_type_hints(kind)
        return {
            (field.alias or name): example(hints[name])
            for name, field in kind.model_fields.items()
            if field.is_required()
        }
    origin = getattr(kind, "__origin__", None)
    if origin is list:
        (item,) = get_args(kind)
        value = example(item)
        if isinstance(value, dict) and "name" in getattr(item, "model_fields", {}):
            value = {"name": "nobody", **value}
        return [value]
    if str(origin) == "typing.Literal":
        return get_args(kind)[0]
    return {str: "x", int: 1, bool: True}.get(kind, {})


def arguments(method: Any) -> dict[str, Any]:
    """Arguments for one call: uuids of nothing, and the smallest bodies."""
    hints = get_type_hints(method)
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if name in ("self", "headers", "base_url", "timeout"):
            continue
        if parameter.default is not inspect.Parameter.empty and name != "body":
            continue
        if name == "uuid":
            given[name] = UUID
        elif name == "body" and parameter.default is None:
            continue
        else:
            given[name] = example(hints[name])
    return given


SPECIAL: dict[str, dict[str, Any]] = {
    "create_checkpoint_instances": {"body": [{"from": {"name": "nobody"}}]},
    "create_service_group": {"body": {"services": [{"port": 443}]}},
    "list_images": {"namespace": ["official"], "details": True},
}
"""Where the smallest value is none that any server would take, or the path has two meanings."""


async def test_every_operation_through_the_sdk(sdk: Any) -> None:
    """Each answers in its envelope: what is missing as code 8, what is not supported by name."""
    answered = set()
    for surface, attribute, name in operations():
        if name == "subscribe_audit_events":
            continue  # endless: test_instances.py follows it
        method = getattr(getattr(getattr(sdk.api, surface), attribute), name)
        operation = next(each for each in REGISTRY.operations if each.id == ALIASES.get(name, name))
        given = SPECIAL.get(name) or arguments(method)
        if operation.support == "not supported yet" and operation.status != 200:
            with pytest.raises(UnikraftCloudError, match="not supported yet"):
                await _result(method, given)
        else:
            _check(operation, await _result(method, given))
        answered.add((surface, attribute, name))
    assert len(answered) == len(operations()) - 1


async def _result(method: Any, given: dict[str, Any]) -> Any:
    result = method(**given)
    return [each async for each in result] if inspect.isasyncgen(result) else await result


def _check(operation: Operation, answer: Any) -> None:
    if operation.support == "not supported yet":
        assert answer.status == "error", operation.id
        assert "not supported yet" in answer.message, operation.id
        return
    items = next(iter(vars(answer.data).values()))
    if answer.status == "error":
        assert {item.error for item in items} <= {1, 7, 8, 17}, (operation.id, answer)
    else:
        assert answer.status == "success", operation.id

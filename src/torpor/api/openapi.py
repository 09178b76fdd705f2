"""The OpenAPI document, made from the table of operations and the types that decode and encode.

From msgspec's types themselves, for GET requests with bodies are beyond most generators.
"""

import re
from typing import Any

import msgspec

from torpor.api.operations import MAX_ITEMS, Operation
from torpor.api.wire import BuildRefusal, Refusal
from torpor.controller.requests import Reference

_PARAMETER = re.compile(r"\{(\w+):(\w+)\}")
_REF = "#/components/schemas/{name}"


def document(operations: list[Operation], version: str) -> dict[str, Any]:
    """The document as JSON-like data."""
    kinds = _kinds(operations)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schema_of = {id(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = _PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Torpor",
            "version": version,
            "description": "The platform API of a Torpor server.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _kinds(operations: list[Operation]) -> list[Any]:
    kinds: dict[int, Any] = {id(kind): kind for kind in (Refusal, BuildRefusal, Reference)}
    for operation in operations:
        for kind in (*_answers(operation), operation.body):
            if kind is not None:
                kinds[id(kind)] = kind
    return list(kinds.values())


def _answers(operation: Operation) -> tuple[Any, ...]:
    return operation.answer if isinstance(operation.answer, tuple) else (operation.answer,)


def _operation(operation: Operation, schema_of: dict[int, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.group],
        "responses": _responses(operation, schema_of),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name, _ in _PARAMETER.findall(operation.path)
    ]
    parameters += _query_parameters(operation)
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        schema = schema_of[id(operation.body)]
        if operation.array:
            array = {"type": "array", "items": schema, "maxItems": MAX_ITEMS}
            schema = {"anyOf": [array, schema]}
        described["requestBody"] = {
            "required": operation.body_needed,
            "content": {"application/json": {"schema": schema}},
        }
    if operation.scope == "none":
        described["security"] = []
    if operation.note:
        described["description"] = f"{operation.support.capitalize()}: {operation.note}."
    return described


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    fields = msgspec.structs.fields(operation.query)
    schema, components = msgspec.json.schema_components([operation.query])
    properties = next(iter(components.values()))["properties"] if components else {}
    del schema
    return [
        {
            "name": field.encode_name,
            "in": "query",
            "required": False,
            "schema": {
                key: value
                for key, value in properties[field.encode_name].items()
                if key != "default"
            },
        }
        for field in fields
    ]


def _responses(operation: Operation, schema_of: dict[int, Any]) -> dict[str, Any]:
    refused = {"$ref": _REF.format(name="Refusal")}
    if not operation.envelope:
        refused = {"$ref": _REF.format(name="BuildRefusal")}

    def content(schema: Any, media_type: str = "application/json") -> dict[str, Any]:
        return {media_type: {"schema": schema}}

    responses: dict[str, Any] = {
        "400": {"description": "The request breaks a rule", "content": content(refused)},
        "413": {"description": "The request is too large", "content": content(refused)},
        "429": {"description": "Too many of these", "content": content(refused)},
    }
    if operation.scope != "none":
        general = content({"$ref": _REF.format(name="Refusal")})
        responses["401"] = {"description": "No valid token", "content": general}
        responses["403"] = {"description": "The token lacks a scope", "content": general}
    if operation.form == "refused" and operation.status != 200:
        return responses
    if operation.media_type != "application/json":
        text = content({"type": "string"}, operation.media_type)
        responses["200"] = {"description": "A stream", "content": text}
        return responses
    success = content(_envelope_schema(operation, schema_of))
    if operation.id.startswith("get_instance_metrics"):
        success |= content({"type": "string"}, "text/plain")
    responses["200"] = {"description": operation.summary, "content": success}
    return responses


def _envelope_schema(operation: Operation, schema_of: dict[int, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {"type": "object"}
    if operation.key:
        items = [schema_of[id(kind)] for kind in _answers(operation)]
        failed = {"$ref": _REF.format(name="Item")}
        either = {"anyOf": [*items, *([] if failed in items else [failed])]}
        data = {
            "type": "object",
            "properties": {operation.key: {"type": "array", "items": either}},
            "required": [operation.key],
        }
    return {
        "type": "object",
        "properties": {
            "status": {"enum": ["success", "error", "partial_success"]},
            "message": {"type": "string"},
            "data": data,
            "op_time_us": {"type": "integer"},
            "warnings": {
                "type": "array",
                "items": {"type": "object", "properties": {"message": {"type": "string"}}},
            },
        },
        "required": ["status", "data", "op_time_us"],
    }

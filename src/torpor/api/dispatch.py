"""From an HTTP request to a handler and back, the same way for every operation."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from torpor.api.alternatives import alternatives
from torpor.api.auth import Principal
from torpor.api.operations import MAX_ITEMS, Call, Operation
from torpor.api.service import Service
from torpor.api.wire import BuildProblem, BuildRefusal, Item, Problem, Refusal
from torpor.controller import ItemError
from torpor.controller.errors import from_store, not_supported
from torpor.controller.requests import Reference
from torpor.store import StoreError

JSON = "application/json"

_encode = msgspec.json.Encoder().encode


class RequestError(Exception):
    """The whole request is refused, with this HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def handle(
    service: Service, operation: Operation, request: Request, raw: bytes, principal: Principal
) -> Response:
    """Answers one request."""
    began = time.perf_counter_ns()
    if operation.handler is None:
        return _refused(operation, began)
    query = _query(operation, request)
    body = _body(operation, raw)
    path = {name: str(value) for name, value in request.path_params.items()}
    call = Call(service, principal, request, path, query, body)
    if operation.form != "each":
        try:
            answer = await operation.handler(call)
        except StoreError as error:
            answer = [failed(from_store(error))]
        if isinstance(answer, Response):
            return answer
        return envelope(operation.key, answer, began, warnings=call.warnings)
    items = _items(operation, call)
    handler = operation.handler
    gate = asyncio.Semaphore(operation.parallel)

    async def one(item: Any) -> Any:
        async with gate:
            try:
                return await handler(call, item)
            except ItemError as error:
                return failed(error, item)
            except StoreError as error:
                return failed(from_store(error), item)

    if len(items) == 1:
        answers = [await one(items[0])]
    else:
        answers = await asyncio.gather(*(one(item) for item in items))
    return envelope(operation.key, answers, began, warnings=call.warnings)


def _refused(operation: Operation, began: int) -> Response:
    error = not_supported(operation.summary)
    if not operation.envelope:
        return build_refusal(operation.status, "unsupported", str(error))
    if operation.status != 200:
        return refusal(operation.status, str(error))
    return envelope(operation.key, [failed(error)], began)


def failed(error: ItemError, item: Any = None) -> Item:
    """The item that says why there is none, named as it was asked for."""
    return Item(
        status="error",
        message=str(error),
        error=int(error.code),
        uuid=error.uuid or getattr(item, "uuid", None) or None,
        name=error.name or getattr(item, "name", None) or None,
    )


def envelope(
    key: str,
    answer: Any,
    began: int,
    *,
    message: str = "",
    warnings: Iterable[str] = (),
) -> Response:
    """Wraps objects: `error` if none came off well, `partial_success` if some did."""
    items: list[Any] = answer if isinstance(answer, list) else []
    failures = [item for item in items if getattr(item, "status", "") == "error"]
    status = "success"
    if failures:
        status = "error" if len(failures) == len(items) else "partial_success"
        message = message or failures[0].message or ""
    document: dict[str, Any] = {"status": status}
    if message:
        document["message"] = message
    document["data"] = {key: items} if isinstance(answer, list) else answer
    document["op_time_us"] = (time.perf_counter_ns() - began) // 1000
    if warnings:
        document["warnings"] = [{"message": each} for each in warnings]
    return Response(_encode(document), media_type=JSON)


def refusal(status: int, message: str, *, headers: Mapping[str, str] | None = None) -> Response:
    """The envelope of a request that was not carried out at all."""
    document = Refusal(
        message=message, errors=[Problem(status=status, message=message)], op_time_us=0
    )
    return Response(_encode(document), status_code=status, media_type=JSON, headers=headers)


def build_refusal(status: int, code: str, message: str) -> Response:
    """The same from the build API."""
    document = BuildRefusal(error=BuildProblem(code=code, message=message))
    return Response(_encode(document), status_code=status, media_type=JSON)


def _query(operation: Operation, request: Request) -> Any:
    fields = {entry.encode_name: entry for entry in msgspec.structs.fields(operation.query)}
    values: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        entry = fields.get(name)
        if entry is None:
            known = ", ".join(fields) or "none"
            raise RequestError(400, f"Unknown parameter '{name}'; there are: {known}")
        if _is_list(entry.type):
            values.setdefault(name, []).append(value)
        elif name in values:
            raise RequestError(400, f"Parameter '{name}' is given twice")
        else:
            values[name] = value
    try:
        return msgspec.convert(values, operation.query, strict=False)
    except msgspec.ValidationError as error:
        instead = alternatives(operation.query, str(error))
        raise RequestError(400, f"Parameter: {error}{instead}") from error


def _is_list(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is list


_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {}


def _body(operation: Operation, raw: bytes) -> Any:
    if operation.body is None or not raw:
        if operation.body_needed:
            raise RequestError(400, "A JSON body is needed")
        return None
    decoder = _DECODERS.get(operation.id)
    if decoder is None:
        kind: Any = operation.body
        if operation.array:
            kind = list[kind]
        decoder = _DECODERS.setdefault(operation.id, msgspec.json.Decoder(kind))
    if operation.array and raw.lstrip()[:1] == b"{":
        raw = b"[" + raw + b"]"
    try:
        body = decoder.decode(raw)
    except msgspec.ValidationError as error:
        instead = alternatives(decoder.type, str(error))
        raise RequestError(400, f"Body: {error}{instead}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, f"Body is not JSON: {error}") from error
    if isinstance(body, list) and len(body) > MAX_ITEMS:
        raise RequestError(400, f"Body has {len(body)} objects: at most {MAX_ITEMS} are allowed")
    return body


def _items(operation: Operation, call: Call) -> list[Any]:
    """The objects that an `each` operation is about."""
    uuid = call.path.get("uuid")
    if uuid is not None:
        if isinstance(call.body, list):  # several changes of one object
            return [_with_uuid(item, uuid) for item in call.body]
        kind = operation.body or Reference
        return [_with_uuid(call.body or kind(), uuid)]
    if call.body is not None:
        return list(call.body) if isinstance(call.body, list) else [call.body]
    kind = operation.body or Reference
    items = [kind(uuid=each) for each in getattr(call.query, "uuid", ())]
    items += [kind(name=each) for each in getattr(call.query, "name", ())]
    return items


def _with_uuid(item: Any, uuid: str) -> Any:
    if item.name is not None or item.uuid not in (None, uuid):
        raise RequestError(400, "Body names an object, and so does the path")
    return msgspec.structs.replace(item, uuid=uuid)

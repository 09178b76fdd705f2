"""The ASGI application: a route for every operation of the table, and the document about them."""

import logging
from collections import defaultdict
from importlib.metadata import version
from typing import Any

import msgspec
from litestar import HttpMethod, Litestar, Request, Response, route
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler

import torpor.api.resources  # noqa: F401 -- fills the table
from torpor.api.auth import Principal, authenticate, local_principal
from torpor.api.dispatch import RequestError, handle, refusal
from torpor.api.openapi import document
from torpor.api.operations import REGISTRY, Operation
from torpor.api.service import Service

MAX_BODY_BYTES = 16 << 20
LOCAL = "torpor.local"
"""Extension of the ASGI scope that marks a connection of the local socket."""

log = logging.getLogger("torpor.api")


def make_app(service: Service) -> Litestar:
    """The application of one server."""
    by_path: dict[str, dict[str, Operation]] = defaultdict(dict)
    for operation in REGISTRY.operations:
        by_path[operation.path][operation.method] = operation
    handlers = [_route(service, path, methods) for path, methods in by_path.items()]
    described = msgspec.json.encode(document(REGISTRY.operations, version("torpor")))

    @route("/openapi.json", http_method=HttpMethod.GET)
    async def openapi() -> Response[bytes]:
        return Response(described, media_type="application/json")

    return Litestar(
        route_handlers=[*handlers, openapi],
        openapi_config=None,
        request_max_body_size=MAX_BODY_BYTES,
        exception_handlers={
            RequestError: _refused,
            HTTPException: _http_error,
            Exception: _internal,
        },
        logging_config=None,
    )


def _route(service: Service, path: str, methods: dict[str, Operation]) -> HTTPRouteHandler:
    async def answer(request: Request[Any, Any, Any]) -> Response[bytes]:
        operation = methods[request.method]
        return await handle(service, operation, request, _principal(service, operation, request))

    names = [HttpMethod(method) for method in methods]
    return route(path, http_method=names, status_code=200)(answer)


def _principal(
    service: Service, operation: Operation, request: Request[Any, Any, Any]
) -> Principal:
    if LOCAL in (request.scope.get("extensions") or {}) or operation.scope == "none":
        return local_principal(service.store)
    principal = authenticate(service.store, request.headers.get("authorization", ""))
    if principal is None:
        raise RequestError(401, "No valid token: send 'Authorization: Bearer TOKEN'")
    if operation.scope not in principal.scopes:
        raise RequestError(403, f"The token lacks the scope '{operation.scope}'")
    return principal


def _refused(_: Request[Any, Any, Any], error: RequestError) -> Response[bytes]:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return refusal(error.status, str(error), headers=headers)


def _http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    messages = {404: "No API endpoint of this path", 405: "No such method on this path"}
    headers = dict(error.headers or {})
    return refusal(
        error.status_code, messages.get(error.status_code, error.detail), headers=headers
    )


def _internal(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return refusal(500, "The server failed; its log says how")

"""The ASGI application: a route for every operation of the table, and the document about them."""

import functools
import logging
from collections import defaultdict
from importlib.metadata import version

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

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


def make_app(service: Service) -> ASGIApp:
    """The application of one server."""
    by_path: dict[str, dict[str, Operation]] = defaultdict(dict)
    for operation in REGISTRY.operations:
        by_path[operation.path][operation.method] = operation
    # The first route that matches is taken: a name comes before what stands for any name.
    paths = sorted(by_path, key=lambda path: [part.startswith("{") for part in path.split("/")])
    routes = [Route(path, _Path(service, by_path[path])) for path in paths]
    routes.append(Route("/openapi.json", _openapi))
    return Router(routes, default=_no_such_path)


class _Path:
    """What is at one path, by method."""

    def __init__(self, service: Service, methods: dict[str, Operation]) -> None:
        self._service = service
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return  # nobody waits for an answer
        except RequestError as error:
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            response = refusal(error.status, str(error), headers=headers)
        except HTTPException as error:
            response = refusal(error.status_code, error.detail, headers=error.headers)
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)
            response = refusal(500, "The server failed; its log says how")
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        operation = self._methods.get(request.method)
        if operation is None:
            allowed = {"Allow": ", ".join(sorted(self._methods))}
            return refusal(405, "No such method on this path", headers=allowed)
        principal = _principal(self._service, operation, request)
        return await handle(self._service, operation, request, await _body(request), principal)


async def _body(request: Request) -> bytes:
    """The body. Raises RequestError when it is too large, before all of it has come."""
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
        if size_bytes > MAX_BODY_BYTES:
            raise RequestError(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB")
        chunks.append(chunk)
    return b"".join(chunks)


def _principal(service: Service, operation: Operation, request: Request) -> Principal:
    if LOCAL in (request.scope.get("extensions") or {}) or operation.scope == "none":
        return local_principal(service.store)
    principal = authenticate(service.store, request.headers.get("authorization", ""))
    if principal is None:
        raise RequestError(401, "No valid token: send 'Authorization: Bearer TOKEN'")
    if operation.scope not in principal.scopes:
        raise RequestError(403, f"The token lacks the scope '{operation.scope}'")
    return principal


async def _openapi(_: Request) -> Response:
    return Response(_described(), media_type="application/json")


@functools.cache
def _described() -> bytes:
    """The document, which start-up does not wait for."""
    return msgspec.json.encode(document(REGISTRY.operations, version("torpor")))


async def _no_such_path(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await refusal(404, "No API endpoint of this path")(scope, receive, send)

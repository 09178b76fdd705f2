"""The OpenAPI document is correct, and docs/api.md is what the code says."""

import asyncio
from typing import Any

import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.harness import REPOSITORY
from torpor.api.openapi import document
from torpor.api.operations import REGISTRY
from torpor.api.reference import reference
from torpor.api.service import Service


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_the_reference_is_not_stale() -> None:
    """Renew it with `python -m torpor.api.reference > docs/api.md`."""
    assert (REPOSITORY / "docs" / "api.md").read_text() == reference()


def test_operations_are_named_once() -> None:
    ids = [operation.id for operation in REGISTRY.operations]
    assert len(ids) == len(set(ids))
    routes = [(operation.method, operation.path) for operation in REGISTRY.operations]
    assert len(routes) == len(set(routes))


def test_every_reference_of_the_document_leads_somewhere() -> None:
    described = document(REGISTRY.operations, "0")

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            target = node.get("$ref")
            if isinstance(target, str):
                assert (
                    target.removeprefix("#/components/schemas/")
                    in (described["components"]["schemas"])
                )
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(described)
    for schema in described["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


EXAMPLES = 2
"""Requests for each operation in each mode: over the whole API a few hundred wrong values."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.anyio
async def test_no_request_of_schemathesis_breaks_the_server(server: Service, token: str) -> None:
    """Neither a 5xx nor an answer that the document does not declare."""
    assert await asyncio.to_thread(_run_schemathesis, server.endpoint, token) > 100


def _run_schemathesis(url: str, token: str) -> int:
    """How many operations were tried with right and wrong values."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    # Waits and streams are endless, and a quiesced server is of no use to the rest.
    schema = schema.exclude(path_regex="/v1/audit|/wait$|/quiesce")
    tried = 0
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {token}"
        for result in schema.get_all_operations():
            operation = result.ok()
            for mode in GenerationMode:
                _try(operation, operation.as_strategy(generation_mode=mode), session)
            tried += 1
    return tried


def _try(operation: Any, cases: SearchStrategy[Any], session: requests.Session) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def attempt(case: Any) -> None:
        response = case.call(session=session, timeout=60)
        case.validate_response(response, checks=CHECKS)

    try:
        attempt()
    except Unsatisfiable:
        return  # nothing can be wrong with an operation that takes nothing
    except Exception as error:
        error.add_note(operation.label)
        raise

"""The OpenAPI document: complete for every route, and true for requests that are generated from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from core.engine import Engine

from .live_server import serve

EXAMPLES = 7  # requests for each of about 43 operations


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory):
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), quantization="none", device="cpu") as made:
        made.bases.current(wait=True)
        made.worker.choose = lambda waiting: None  # generated runs stay in the queue
        yield made


@pytest.fixture(scope="module")
def address(engine):
    with serve(engine) as url:
        yield url


@pytest.fixture(scope="module")
def document(address) -> dict[str, Any]:
    return httpx.get(f"{address}/openapi.json").json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def has_example(value: Any, document: dict[str, Any], depth: int = 0) -> bool:
    """Whether a part of the document, or a schema that it refers to, has an example."""
    if depth > 12:
        return False
    if isinstance(value, list):
        return any(has_example(v, document, depth + 1) for v in value)
    if not isinstance(value, dict):
        return False
    if "example" in value or "examples" in value:
        return True
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return has_example(document["components"]["schemas"][name], document, depth + 1)
    return any(has_example(v, document, depth + 1) for v in value.values())


def test_every_route_has_a_summary_a_tag_a_body_and_an_example(document):
    found = list(operations(document))
    assert len(found) >= 35
    for name, operation in found:
        assert operation.get("summary") and operation.get("tags"), name
        success = [r for code, r in operation["responses"].items() if code.startswith("2")]
        assert success and any(r.get("content") for r in success), name
        parts = [operation.get("requestBody", {}), *success]  # OpenAI's API is documented by OpenAI
        if name.split()[1].startswith(("/api/", "/fine-tuning/", "/openapi.json", "/mcp")):
            assert has_example(parts, document), f"{name} has no example"


def test_every_error_of_the_document_is_a_problem(document):
    for name, operation in operations(document):
        content = operation["responses"]["default"]["content"]
        assert content == {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        }, name
        assert "422" not in operation["responses"], name
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_reference_of_the_document_resolves(document):
    def names(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            value = list(value.values())
        if isinstance(value, list):
            for inner in value:
                yield from names(inner)

    references = set(names(document))
    assert len(references) > 20
    schemas = document["components"]["schemas"]
    assert not [r for r in references if r.rpartition("/")[2] not in schemas]


def test_the_settings_of_a_run_are_those_of_the_form(document):
    rank = document["components"]["schemas"]["TrainSettings"]["properties"]["rank"]
    assert (rank["minimum"], rank["maximum"], rank["default"]) == (1, 256, 16)
    assert rank["description"].startswith("Rank of the update")


@pytest.mark.slow
def test_generated_requests_never_fail_and_answers_match_the_document(address):
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    sent: list[int] = []

    def examine(case: Any) -> None:
        response = case.call(timeout=60)
        sent.append(response.status_code)
        case.validate_response(response, checks=checks)
        if response.status_code >= 400 and case.operation.path != "/mcp":
            assert response.headers["content-type"][0] == "application/problem+json"
            problem = response.json()
            assert problem["status"] == response.status_code and problem["title"]

    for result in schema.get_all_operations():
        operation = result.ok()
        run = settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(given(case=operation.as_strategy())(examine))
        run()
    assert len(sent) >= 200 and min(sent) < 300 <= max(sent)

"""The OpenAPI document: a schema for every answer, and no reference that leads nowhere."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serve.api.app import create_app
from serve.api.problems import Problem
from serve.settings import ServiceSettings

PROBLEM = "application/problem+json"
METHODS = {"get", "post", "put", "patch", "delete"}
Document = dict[str, Any]


@pytest.fixture(scope="module", params=["demo", "keys"])
def document(request: pytest.FixtureRequest) -> Document:
    """Return the document of a service with uploads, and of one with keys and without uploads."""
    demo = request.param == "demo"
    context = SimpleNamespace(
        settings=ServiceSettings(bundle=Path("bundle"), store=Path("store"), demo=True),
        keys=None if demo else object(),
        upload=object() if demo else None,
        observer=SimpleNamespace(count_problem=lambda status: None),
    )
    return create_app(context).openapi()  # type: ignore[arg-type]


def operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert method in METHODS
            yield f"{method} {path}", operation


def references(node: Any) -> Iterator[str]:
    """Yield every `$ref` at any depth."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(document: Document, reference: str) -> Any:
    """Return the part of the document that a reference points to. Raises KeyError."""
    assert reference.startswith("#/"), reference
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return node


def test_every_reference_leads_to_a_schema(document: Document) -> None:
    all_references = set(references(document))
    assert "#/components/schemas/ForecastStatus" in all_references
    for reference in all_references:
        assert resolve(document, reference), reference


def test_a_dangling_reference_is_found(document: Document) -> None:
    broken = {**document, "components": {"schemas": {}}}
    with pytest.raises(KeyError):
        [resolve(broken, reference) for reference in references(broken)]


def test_every_answer_has_a_schema_and_a_description(document: Document) -> None:
    for name, operation in operations(document):
        assert operation["operationId"]
        assert operation["summary"]
        for status, response in operation["responses"].items():
            assert response["description"], (name, status)
            if status in ("204", "304"):
                assert "content" not in response
                continue
            assert response["content"], (name, status)
            for media_type, content in response["content"].items():
                assert content.get("schema"), (name, status, media_type)
                if status != "503":  # probes answer it in a form of their own, or as a problem
                    assert (media_type == PROBLEM) == (int(status) >= 400), (name, status)


def test_every_schema_of_json_answers_names_its_fields(document: Document) -> None:
    for name, operation in operations(document):
        for response in operation["responses"].values():
            for media_type, content in response.get("content", {}).items():
                if media_type.endswith("json"):
                    schema = resolve(document, content["schema"]["$ref"])
                    assert schema["properties"], name


def test_operation_ids_and_tags_are_unique_names(document: Document) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids)) == 18
    tags = {tag for _, operation in operations(document) for tag in operation["tags"]}
    assert tags == {"health", "models", "forecasts", "lists", "results", "view"}


def test_a_forecast_is_requested_with_json_or_with_images(document: Document) -> None:
    body = document["paths"]["/v1/forecasts"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}


def test_every_problem_has_an_example_of_its_status(document: Document) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if PROBLEM in response.get("content", {}):
                example = response["content"][PROBLEM]["example"]
                problem = Problem.model_validate(example)
                assert problem.status == int(status), (name, status)
                assert problem.title == response["description"] or status == "503"


def test_answers_that_say_when_to_ask_again_are_described(document: Document) -> None:
    keyed = "securitySchemes" in document["components"]
    for name, operation in operations(document):
        responses = operation["responses"]
        for status in {"409", "429"} & set(responses):
            assert "Retry-After" in responses[status]["headers"], name
        assert ("WWW-Authenticate" in responses.get("401", {}).get("headers", {})) == (
            keyed and "/health/" not in name
        )
    forecast = "/v1/forecasts/{forecast_id}"
    for path, method, statuses in (
        ("/v1/forecasts", "post", {"413", "422", "429", "503"}),
        (f"{forecast}/events", "get", {"404", "429"}),
        (f"{forecast}/result", "get", {"404", "409", "410"}),
        (f"{forecast}/segmentation", "post", {"409", "410", "413", "415", "429", "501"}),
    ):
        assert statuses <= set(document["paths"][path][method]["responses"]), path

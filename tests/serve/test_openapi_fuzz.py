"""Valid and invalid requests generated from the OpenAPI document: none is a server error."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve.client import Client
from tests.support.bids import ARMS
from tests.support.service import (
    Service,
    key_line,
    run_service,
    trial_settings,
    wait_for_success,
    write_trial_served,
)

pytestmark = pytest.mark.slow
POST = "POST /v1/forecasts"
LISTS = ("GET /v1/forecasts", "GET /v1/subjects")
OPERATIONS = [
    POST,
    *LISTS,
    "GET /v1/forecasts/{forecast_id}",
    "GET /v1/forecasts/{forecast_id}/events",
    "GET /v1/forecasts/{forecast_id}/result",
    "GET /v1/forecasts/{forecast_id}/arms/{arm}",
    "GET /v1/forecasts/{forecast_id}/arms/{arm}/samples/{index}",
    "GET /v1/forecasts/{forecast_id}/derivative",
    "GET /v1/forecasts/{forecast_id}/view",
    "GET /v1/forecasts/{forecast_id}/html",
    "POST /v1/forecasts/{forecast_id}/segmentation",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2",
    "GET /v2/models/{name}",
    "GET /v2/models/{name}/ready",
    "DELETE /v1/forecasts/{forecast_id}",  # last: it removes what the others have found
]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
CHECKS.append(response_schema_conformance)
KEY = {"Authorization": "Bearer key"}
REQUEST = {"subject": "sub-01", "samples": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_trial_served(folder, unlabelled="sub-03")
    (folder / "keys.txt").write_text(key_line("a", "key"))
    return folder


@pytest.fixture(scope="module", params=["demo", "keys"])
def service(root: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """Run a service that draws only the forecast of `succeeded`, and accepts all others."""
    auth = {"demo": {}, "keys": {"demo": False, "keys": root / "keys.txt"}}[request.param]
    settings = trial_settings(root, root / request.param, max_unfinished_forecasts=10_000, **auth)
    with run_service(settings) as service:
        yield service
        service.paused = False


@pytest.fixture(scope="module")
def succeeded(service: Service) -> str:
    """Return the id of a forecast that has a result."""
    with Client(service.url, key="key") as client:
        job = wait_for_success(client, client.create_forecast(**REQUEST))
    service.paused = True
    return job


@pytest.fixture(scope="module")
def schema(service: Service) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json", headers=KEY)


def test_every_operation_is_fuzzed(schema: schemathesis.BaseSchema) -> None:
    labels = {operation.ok().label for operation in schema.get_all_operations()}
    assert labels == set(OPERATIONS)


def test_the_document_describes_problems_and_authentication(service: Service) -> None:
    document = httpx2.get(f"{service.url}/openapi.json", headers=KEY).json()
    assert "HTTPValidationError" not in json.dumps(document)
    keyed = service.settings.keys is not None
    assert ("securitySchemes" in document["components"]) == keyed
    for path, methods in document["paths"].items():
        for operation in methods.values():
            protected = keyed and not path.startswith("/v2/health/")
            assert ("security" in operation) == ("401" in operation["responses"]) == protected


@pytest.mark.parametrize(
    ("operation", "mode", "examples"),
    [
        (POST, GenerationMode.NEGATIVE, 20),
        *((name, GenerationMode.NEGATIVE, 8) for name in LISTS),
        *((name, GenerationMode.POSITIVE, 10 if name == POST else 4) for name in OPERATIONS),
    ],
)
def test_no_request_is_a_server_error_and_every_answer_is_described(
    service: Service,
    schema: schemathesis.BaseSchema,
    succeeded: str,
    operation: str,
    mode: GenerationMode,
    examples: int,
) -> None:
    method, path = operation.split()
    described = schema[path][method]
    job = httpx2.post(f"{service.url}/v1/forecasts", json=REQUEST, headers=KEY).json()["id"]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=described.as_strategy(generation_mode=mode))
    def fuzz(case: Case) -> None:
        check(case)
        if "forecast_id" in case.path_parameters:
            if not path.endswith("/events"):  # which do not end before the forecast does
                case.path_parameters["forecast_id"] = job
                check(case)
            case.path_parameters["forecast_id"] = succeeded
            check(case)
        if "arm" in case.path_parameters:
            case.path_parameters["arm"] = ARMS[0]
            check(case)

    def check(case: Case) -> None:
        for headers in ({}, KEY) if service.settings.keys else ({},):
            answer = case.call(base_url=service.url, timeout=60, headers=headers)
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == ["application/problem+json"]
            case.validate_response(answer, checks=CHECKS)
            seen.add(answer.status_code)

    seen: set[int] = set()
    fuzz()
    if "{forecast_id}" in path:
        assert seen & {200, 204, 422}, seen  # 422: of a series that is none

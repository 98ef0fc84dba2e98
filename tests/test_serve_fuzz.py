"""Requests made up from the service's own OpenAPI, right and wrong ones: none is a server error."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from tiny_service import Service, running, trial_settings, write_trial_served

pytestmark = pytest.mark.slow
POST = "POST /v1/forecasts"
OPERATIONS = [
    POST,
    "GET /v1/forecasts/{job}",
    "DELETE /v1/forecasts/{job}",
    "GET /v1/forecasts/{job}/events",
    "GET /v1/forecasts/{job}/result",
    "GET /v1/forecasts/{job}/arms/{arm}",
    "GET /v1/forecasts/{job}/derivative",
    "POST /v1/forecasts/{job}/segmentation",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2",
    "GET /v2/models/{name}",
    "GET /v2/models/{name}/ready",
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that accepts and never draws."""
    root: Path = tmp_path_factory.mktemp("fuzz")
    write_trial_served(root, unlabelled="sub-03")
    with running(trial_settings(root, root / "out", unfinished=10_000)) as service:
        service.held = True
        yield service
        service.held = False


@pytest.fixture(scope="module")
def schema(service: Service) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


def test_every_operation_is_fuzzed(schema: schemathesis.BaseSchema) -> None:
    found = {each.ok().label for each in schema.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(
    ("operation", "mode", "examples"),
    [
        (POST, GenerationMode.NEGATIVE, 20),
        *((each, GenerationMode.POSITIVE, 10 if each == POST else 4) for each in OPERATIONS),
    ],
)
def test_no_request_is_a_server_error(
    service: Service,
    schema: schemathesis.BaseSchema,
    operation: str,
    mode: GenerationMode,
    examples: int,
) -> None:
    method, path = operation.split()
    wanted = schema[path][method]
    order = {"subject": "sub-01", "samples": 2}
    job = httpx2.post(f"{service.url}/v1/forecasts", json=order).json()["id"]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=wanted.as_strategy(generation_mode=mode))
    def fuzz(case: Case) -> None:
        if "job" in case.path_parameters and not path.endswith("/events"):
            check(case)
            case.path_parameters["job"] = job
        check(case)

    def check(case: Case) -> None:
        answer = case.call(base_url=service.url, timeout=60)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == ["application/problem+json"]

    fuzz()

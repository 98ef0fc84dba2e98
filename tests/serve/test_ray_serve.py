"""The service on Ray Serve: no forecast is lost when replicas are killed or it is restarted."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve as ray_serve

from serve.app import build
from serve.client import Client
from serve.settings import ServiceSettings
from serve.uploads import UPLOAD_FIELDS
from tests.benchmarks.service.service_load import APPLICATION, deploy, measure, service_on_ray
from tests.support.bids import path_of
from tests.support.forecast import SPEC
from tests.support.service import trial_settings, wait_for_result, wait_until, write_trial_served

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SAMPLES = 24
OURS, LABELS = "ray_lesioncast_", ("arm", "state", "status", "error")
UNLABELLED = "sub-03"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ServiceSettings:
    """Return settings of a service whose samples take long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("app")
    write_trial_served(folder, unlabelled=UNLABELLED, num_steps=60)
    given = {"max_samplers": 2, "min_samplers": 2, "max_concurrent_forecasts": 8}
    return trial_settings(folder, folder / "out", **given)


@pytest.fixture(scope="module")
def url(ray_cluster: None, settings: ServiceSettings) -> Iterator[str]:
    with service_on_ray(settings) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout=300) as client:
        yield client


def kill(deployment: str) -> None:
    """Kill all replicas of a deployment, as if their machines had failed."""
    names = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == "serve" and f"#{deployment}#" in actor["name"]
    ]
    assert names
    for name in names:
        ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)


def midway(client: Client, job: str) -> None:
    """Wait until some blocks are drawn; fail if the forecast finishes before."""
    wait_until(lambda: client.status(job)["progress"]["done"] > 0, seconds=300)
    assert client.status(job)["state"] == "running"


def scraped() -> Counter[tuple[str, str]]:
    """Return the exported metrics of the service: sums by metric and by its own label."""
    (node,) = ray.nodes()
    port = node["MetricsExportPort"]
    text = httpx2.get(f"http://{node['NodeManagerAddress']}:{port}/metrics").text
    totals: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(OURS):
                own = [sample.labels[label] for label in LABELS if label in sample.labels]
                totals[sample.name.removeprefix(OURS), "".join(own)] += sample.value
    return totals


def test_exported_metrics_match_what_was_done(
    client: Client, url: str, settings: ServiceSettings
) -> None:
    before = scraped()
    seen = list(client.stream_events(client.create_forecast("sub-02", samples=SAMPLES)))
    done = [status["progress"]["done"] for status in seen]
    assert done == sorted(done)
    assert any(0 < samples < done[-1] for samples in done)
    client.delete(client.create_forecast("sub-02", samples=SAMPLES, sampler={"num_steps": 512}))
    assert httpx2.get(f"{url}/v1/forecasts/unknown").status_code == 404
    expected = {("samples_total", arm): SAMPLES for arm in SPEC.arms} | {
        ("forecasts_total", "succeeded"): 1,
        ("forecasts_total", "cancelled"): 1,
        ("forecast_seconds_count", ""): 1,
        ("first_samples_seconds_count", ""): 1,
        ("http_problems_total", "404"): 1,
    }
    now: Counter[tuple[str, str]] = Counter()

    def exported() -> bool:
        now.clear()
        now.update(scraped())
        return {key: now[key] - before[key] for key in expected} == expected

    wait_until(exported)
    passes, rows = now["steps_total", ""], now["batch_rows_total", ""]
    assert now["step_duration_seconds_count", ""] == passes
    assert passes < rows <= settings.slots * passes
    assert now["step_seconds_total", ""] > 0
    assert not [key for key in now if key[0] == "errors_total"]


def test_many_requests_at_once_end_in_a_result_or_a_429_and_memory_stays(
    client: Client, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the load test in small: half of the requests wait until others have finished."""
    measure(url, requests=24, rounds=3)
    lines = capsys.readouterr().out.splitlines()
    rounds = [line.split("|")[2:-1] for line in lines if re.match(r"\| \d", line)]
    ended = [re.findall(r"(\d+) (succeeded|429)", each[0]) for each in rounds]
    assert [sum(int(number) for number, _ in each) for each in ended] == [24] * 3
    memory = [float(each[4].split()[0]) for each in rounds]
    assert memory[2] - memory[1] < 50  # MiB; the first round warms the processes


def test_killed_replicas_and_a_restart_lose_and_change_no_forecast(
    client: Client, settings: ServiceSettings, url: str
) -> None:
    undisturbed = wait_for_result(client, client.create_forecast("sub-02", samples=SAMPLES))
    assert list(undisturbed["arms"]) == list(SPEC.arms)
    for deployment in ("SamplerDeployment", "ForecastWorkerDeployment"):
        job = client.create_forecast("sub-02", samples=SAMPLES)
        midway(client, job)
        kill(deployment)
        wait_until(lambda: not ready(url))
        assert wait_for_result(client, job) == undisturbed
        wait_until(lambda: ready(url))
    job = client.create_forecast("sub-02", samples=SAMPLES)
    midway(client, job)
    ray_serve.delete(APPLICATION)
    deploy(settings)
    assert wait_for_result(client, job) == undisturbed


def ready(url: str) -> bool:
    return httpx2.get(f"{url}/v2/health/ready", timeout=30).status_code == 200


def test_a_request_can_be_repeated_after_its_ingress_was_killed(client: Client, url: str) -> None:
    request = {"subject": "sub-02", "samples": SAMPLES}

    def post() -> httpx2.Response:
        headers = {"Idempotency-Key": "asked once"}
        return httpx2.post(f"{url}/v1/forecasts", json=request, headers=headers, timeout=60)

    job = post().json()["id"]
    midway(client, job)
    kill("Ingress")
    wait_until(lambda: post().status_code == 202)
    assert post().json()["id"] == job
    assert wait_for_result(client, job) == wait_for_result(
        client, client.create_forecast("sub-02", samples=SAMPLES)
    )


def test_autoscaling_of_samplers_follows_the_settings(settings: ServiceSettings) -> None:
    changed = {"max_samplers": 3, "min_samplers": 2, "target_ongoing_requests": 5}
    built = build(ServiceSettings(**(settings.model_dump() | changed)))
    forecaster = built._bound_deployment.init_args[1]
    sampler = forecaster._bound_deployment.init_args[1]._bound_deployment
    scaling = sampler._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 3)
    assert scaling.target_ongoing_requests == 5
    given = settings.model_dump(exclude={"target_ongoing_requests", "max_samplers", "min_samplers"})
    plain = ServiceSettings(**given | {"slots": 32, "seeds_per_block": 8})
    assert (plain.min_samplers, plain.max_samplers, plain.target_ongoing_requests) == (1, 1, 8)
    with pytest.raises(ValueError, match="min_samplers: expected at most max_samplers, 1, got 2"):
        ServiceSettings(**given, min_samplers=2)


def test_demo_mode_is_refused_behind_haproxy(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(ValueError, match="start it with keys=FILE"):
        build(settings)


def test_uploads_pass_through_serves_proxy(client: Client, settings: ServiceSettings) -> None:
    bids = settings.store.parent / "bids"
    images = {
        name: path_of(bids, UNLABELLED, *name.split("/"))
        for name in UPLOAD_FIELDS
        if name != "w048/brain_mask"
    }
    stored = wait_for_result(client, client.create_forecast(UNLABELLED, samples=2))
    assert (
        wait_for_result(client, client.create_forecast(UNLABELLED, images=images, samples=2))
        == stored
    )


def test_the_log_ties_a_request_to_its_forecast(client: Client, url: str) -> None:
    response = httpx2.post(
        f"{url}/v1/forecasts",
        json={"subject": "sub-02", "samples": 2},
        headers={"X-Request-ID": "asked-by-a-test"},
        timeout=60,
    )
    job = response.json()["id"]
    assert response.headers["x-request-id"] == "asked-by-a-test"
    wait_for_result(client, job)
    wait_until(
        lambda: (
            ("forecast.finished", "succeeded")
            in {(e["message"], e.get("state")) for e in log_lines(job)}
        )
    )
    (accepted,) = (line for line in log_lines(job) if line["message"] == "forecast.accepted")
    assert accepted["request_id"] == "asked-by-a-test"


def log_lines(job: str) -> list[dict]:  # type: ignore[type-arg]
    """Return the lines of the replicas' logs about a forecast."""
    logs = Path(ray._private.worker._global_node.get_logs_dir_path(), "serve")
    text = "".join(path.read_text() for path in logs.glob("replica_lesioncast_*.log"))
    lines = [line for line in text.splitlines() if job in line]
    return [line for line in map(json.loads, lines) if line.get("forecast") == job]

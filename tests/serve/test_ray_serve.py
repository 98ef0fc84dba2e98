"""The service on Ray Serve: replicas are killed under it, it is restarted, and nothing is lost."""

import json
import socket
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
from tests.support.bids import path_of
from tests.support.forecast import SPEC, write_bundle
from tests.support.service import result, trial_settings, until, write_trial_served

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SAMPLES = 24
OURS, LABELS = "ray_lesioncast_", ("arm", "state", "status", "error")
UNLABELLED = "sub-03"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ServiceSettings:
    """Of a service whose samples take long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("app")
    write_trial_served(folder, unlabelled=UNLABELLED)
    write_bundle(folder / "bundle", num_steps=60)
    return trial_settings(folder, folder / "out", max_samplers=2, min_samplers=2)


@pytest.fixture(scope="module")
def url(ray_cluster: None, settings: ServiceSettings) -> Iterator[str]:
    port = free_port()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    ray_serve.run(build(settings), name="lesioncast", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    ray_serve.shutdown()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout=300) as client:
        yield client


def kill(deployment: str) -> None:
    """All replicas of a deployment die as if their machines had failed."""
    names = [
        each["name"]
        for each in ray.util.list_named_actors(all_namespaces=True)
        if each["namespace"] == "serve" and f"#{deployment}#" in each["name"]
    ]
    assert names
    for name in names:
        ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)


def midway(client: Client, job: str) -> None:
    """Waits until some of its blocks are drawn; fails where it ends before it can be disturbed."""
    until(lambda: client.status(job)["progress"]["done"] > 0, seconds=300)
    assert client.status(job)["state"] == "running"


def scraped() -> Counter[tuple[str, str]]:
    """What the node's exporter says of the service: sums by metric and by its own label."""
    (node,) = ray.nodes()
    port = node["MetricsExportPort"]
    text = httpx2.get(f"http://{node['NodeManagerAddress']}:{port}/metrics").text
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(OURS):
                own = [sample.labels[each] for each in LABELS if each in sample.labels]
                found[sample.name.removeprefix(OURS), "".join(own)] += sample.value
    return found


def test_what_is_measured_is_what_was_done(
    client: Client, url: str, settings: ServiceSettings
) -> None:
    before = scraped()
    seen = list(client.stream_events(client.create_forecast("sub-02", samples=SAMPLES)))
    done = [status["progress"]["done"] for status in seen]
    assert done == sorted(done)
    assert any(0 < each < done[-1] for each in done)
    client.delete(client.create_forecast("sub-02", samples=SAMPLES, sampler={"num_steps": 512}))
    assert httpx2.get(f"{url}/v1/forecasts/unknown").status_code == 404
    expected = {("samples_total", arm): SAMPLES for arm in SPEC.arms} | {
        ("forecasts_total", "succeeded"): 1,
        ("forecasts_total", "cancelled"): 1,
        ("forecast_seconds_count", ""): 1,
        ("first_samples_seconds_count", ""): 1,
        ("problems_total", "404"): 1,
    }
    now: Counter[tuple[str, str]] = Counter()

    def exported() -> bool:
        now.clear()
        now.update(scraped())
        return {key: now[key] - before[key] for key in expected} == expected

    until(exported)
    passes, rows = now["steps_total", ""], now["rows_total", ""]
    assert now["step_duration_seconds_count", ""] == passes
    assert passes < rows <= settings.slots * passes
    assert now["step_seconds_total", ""] > 0
    assert not [key for key in now if key[0] == "errors_total"]


def test_no_accepted_forecast_is_lost_or_changed_by_kills_and_a_restart(
    client: Client, settings: ServiceSettings, url: str
) -> None:
    undisturbed = result(client, client.create_forecast("sub-02", samples=SAMPLES))
    assert list(undisturbed["arms"]) == list(SPEC.arms)
    for deployment in ("SamplerReplica", "ForecasterReplica"):
        job = client.create_forecast("sub-02", samples=SAMPLES)
        midway(client, job)
        kill(deployment)
        until(lambda: not ready(url))
        assert result(client, job) == undisturbed
        until(lambda: ready(url))
    job = client.create_forecast("sub-02", samples=SAMPLES)
    midway(client, job)
    ray_serve.delete("lesioncast")
    ray_serve.run(build(settings), name="lesioncast", route_prefix="/")
    assert result(client, job) == undisturbed


def ready(url: str) -> bool:
    return httpx2.get(f"{url}/v2/health/ready", timeout=30).status_code == 200


def test_a_client_whose_ingress_was_killed_repeats_its_request(client: Client, url: str) -> None:
    order = {"subject": "sub-02", "samples": SAMPLES}

    def asked() -> httpx2.Response:
        headers = {"Idempotency-Key": "asked once"}
        return httpx2.post(f"{url}/v1/forecasts", json=order, headers=headers, timeout=60)

    job = asked().json()["id"]
    midway(client, job)
    kill("Ingress")
    until(lambda: asked().status_code == 202)
    assert asked().json()["id"] == job
    assert result(client, job) == result(client, client.create_forecast("sub-02", samples=SAMPLES))


def test_how_many_samplers_there_are_is_a_setting(settings: ServiceSettings) -> None:
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
    with pytest.raises(ValueError, match="min_samplers: expected at most samplers, 1, got 2"):
        ServiceSettings(**given, min_samplers=2)


def test_demo_mode_is_not_for_haproxy_behind_which_all_look_local(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(ValueError, match="start it with keys=FILE"):
        build(settings)


def test_images_come_through_serves_proxy(client: Client, settings: ServiceSettings) -> None:
    bids = settings.store.parent / "bids"
    images = {
        name: path_of(bids, UNLABELLED, *name.split("/"))
        for name in UPLOAD_FIELDS
        if name != "w048/brain_mask"
    }
    stored = result(client, client.create_forecast(UNLABELLED, samples=2))
    assert result(client, client.create_forecast(UNLABELLED, images=images, samples=2)) == stored


def test_the_log_ties_a_request_to_what_came_of_it(client: Client, url: str) -> None:
    asked = httpx2.post(
        f"{url}/v1/forecasts",
        json={"subject": "sub-02", "samples": 2},
        headers={"X-Request-ID": "asked-by-a-test"},
        timeout=60,
    )
    job = asked.json()["id"]
    assert asked.headers["x-request-id"] == "asked-by-a-test"
    result(client, job)
    until(lambda: ("ended", "succeeded") in {(e["message"], e.get("state")) for e in told_of(job)})
    (accepted,) = (each for each in told_of(job) if each["message"] == "accepted")
    assert accepted["request_id"] == "asked-by-a-test"


def told_of(job: str) -> list[dict]:  # type: ignore[type-arg]
    """What the replicas' logs say of a forecast."""
    logs = Path(ray._private.worker._global_node.get_logs_dir_path(), "serve")
    text = "".join(path.read_text() for path in logs.glob("replica_lesioncast_*.log"))
    lines = [line for line in text.splitlines() if job in line]
    return [each for each in map(json.loads, lines) if each.get("forecast") == job]

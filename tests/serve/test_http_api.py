"""The service through real HTTP, on a tiny store with networks of random weights."""

import gzip
import json
import logging
import math
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

import httpx2
import nibabel as nib
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from lesioncast.bundle.bundle import load_bundle
from lesioncast.bundle.compatibility import input_sessions
from lesioncast.diffusion.controlnet import PatientEncoding
from lesioncast.forecasting.disclaimers import bundle_warnings, sessions_note
from lesioncast.forecasting.ensemble import active_fraction, wilson_interval
from lesioncast.forecasting.output.bids import summary_path
from lesioncast.forecasting.output.summary import RunProvenance
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    plan_forecast,
    stored_flair,
    write_forecasts,
)
from lesioncast.forecasting.runtime import build_sampler
from lesioncast.forecasting.sampling import (
    EnsembleRequest,
    ensembles,
    group_by_request,
    plan_batches,
    sample_seeds,
)
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.forecasting.training_data import training_data_note
from serve.api.routes import results
from serve.app import build
from serve.artifacts import result_dir
from serve.client import ApiError, Client
from serve.db.open import open_repository
from serve.db.repository import JobRepository
from serve.inference.sampler import SamplerWorker
from serve.patients import PatientRef
from serve.settings import ServiceSettings
from storage import VisitSchedule, open_store
from tests.support.forecast import SPEC, write_bundle, write_store
from tests.support.service import (
    Service,
    assert_problem,
    key_line,
    run_service,
    wait_for_success,
    wait_until,
)

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"hospital-a": "the key of a", "hospital-b": "the key of b"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service")
    write_store(folder / "store.zarr", folder / "bids", test=4)
    write_bundle(folder / "bundle", baseline_only=True)
    lines = [key_line(name, key) for name, key in KEYS.items()]
    (folder / "keys.txt").write_text("".join(lines))
    return folder


def settings_in(root: Path, name: str, **given: object) -> ServiceSettings:
    return ServiceSettings(
        bundle=root / "bundle",
        store=root / "store.zarr",
        artifacts=root / name,
        seeds_per_block=2,
        **({"keys": root / "keys.txt"} | given),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def service(root: Path) -> Iterator[Service]:
    with run_service(
        settings_in(
            root, "out", max_unfinished_forecasts=3, max_samples=20, max_body=2000, retry_after=1
        )
    ) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, key=KEYS["hospital-a"]) as client:
        yield client
    service.reset()


@pytest.fixture
def http(service: Service) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {KEYS['hospital-a']}"}
    with httpx2.Client(base_url=service.url, headers=headers, timeout=60) as http:
        yield http


def test_a_forecast_is_requested_followed_and_downloaded(client: Client, tmp_path: Path) -> None:
    job = client.create_forecast("sub-02", samples=4, seed=7)
    seen = list(client.stream_events(job))
    assert seen[-1]["state"] == "succeeded"
    assert seen[-1]["progress"] == {"done": 12, "total": 12}
    record = client.result(job)
    assert list(record["arms"]) == list(SPEC.arms)
    assert record["seed"] == 7
    assert record["reference_arm"] == SPEC.arms[0]
    path = tmp_path / "map.nii.gz"
    client.download_probability_map(job, SPEC.arms[1], path)
    assert 0 <= nib.load(path).get_fdata().max() <= 1
    assert gzip.decompress(path.read_bytes())


def test_the_result_equals_the_summary_of_the_job(
    client: Client, root: Path, tmp_path: Path
) -> None:
    record = client.result(wait_for_success(client, client.create_forecast("sub-03", samples=3)))
    bundle, store = load_bundle(root / "bundle"), open_store(root / "store.zarr")
    case = store.case("sub-03")
    settings = ForecastSettings(samples=3, batch_size=4, reference_arm=SPEC.arms[0])
    batches = plan_forecast(store, [case], settings=settings, seed=0).batches(settings.batch_size)
    draw = build_sampler(root / "bundle", root / "store.zarr", device="cpu")
    run = ForecastRun(
        settings=settings,
        provenance=RunProvenance(
            bundle.digest,
            0,
            (training_data_note(bundle.path), sessions_note(("w000", "w048"), VisitSchedule())),
            input_sessions(bundle),
            condition=bundle.config.model.control.condition,
            identifiability_warnings=bundle_warnings(bundle.path, bundle.digest),
        ),
        out=tmp_path,
        background=stored_flair(store),
    )
    (written,) = write_forecasts(store, [case], map(draw, batches), run)
    assert record == json.loads(json.dumps(asdict(written)))


def test_a_finished_forecast_counts_its_warnings_by_code(client: Client, service: Service) -> None:
    record = client.result(wait_for_success(client, client.create_forecast("sub-03", samples=2)))
    codes = {warning["code"] for warning in record["warnings"]}
    assert "typicality_unknown" in codes  # the bundle of these tests has no reference
    wait_until(lambda: codes <= set(service.warnings))


def test_the_status_of_a_running_forecast_has_partial_results(
    client: Client, service: Service, root: Path
) -> None:
    arms = list(SPEC.arms[:2])
    service.budget = 0
    job = client.create_forecast("sub-01", samples=4, arms=arms)
    wait_until(lambda: client.status(job)["state"] == "running")
    assert client.status(job)["progress"] == {"done": 0, "total": 8}
    assert client.status(job)["partial"] == {}
    with pytest.raises(ApiError, match="running: it has no result"):
        client.result(job)
    service.budget = 2
    wait_until(lambda: client.status(job)["progress"] == {"done": 4, "total": 8})
    assert client.status(job)["partial"] == partial(root, "sub-01", arms, samples=2)
    service.budget = math.inf
    ended = list(client.stream_events(job))[-1]
    assert (ended["progress"], ended["partial"]) == ({"done": 8, "total": 8}, {})


def partial(root: Path, subject: str, arms: list[str], *, samples: int) -> dict[str, object]:
    """Return the partial results of the first samples under each arm."""
    case = open_store(root / "store.zarr").case(subject).index
    seeds = {case: sample_seeds(0, subject, samples)}
    requests = [EnsembleRequest(case, SPEC.arms.index(arm)) for arm in arms]
    draw = build_sampler(root / "bundle", root / "store.zarr", device="cpu")
    estimates: dict[str, object] = {}
    for ensemble in group_by_request(
        requests, seeds, map(draw, plan_batches(requests, seeds, batch_size=8))
    ):
        share = active_fraction(ensemble.plain)
        low, high = wilson_interval(share, samples)
        estimates[SPEC.arms[ensemble.request.arm]] = {
            "samples": samples,
            "active_fraction": {"value": share, "low": low, "high": high},
            "count_mean": ensemble.plain.mean(),
        }
    return estimates


def test_unfinished_forecasts_are_answered_with_retry_after(
    client: Client, service: Service, http: httpx2.Client
) -> None:
    service.paused = True
    accepted = http.post("/v1/forecasts", json={"subject": "sub-01", "samples": 2})
    url = accepted.headers["Location"]
    early = http.get(f"{url}/result")
    assert_problem(early, 409)
    for answer in (accepted, http.get(url), early):
        assert answer.headers["Retry-After"] == str(service.settings.retry_after)
    service.paused = False
    wait_for_success(client, accepted.json()["id"])
    assert "Retry-After" not in http.get(url).headers
    client.delete(accepted.json()["id"])
    late = http.get(f"{url}/result")
    assert_problem(late, 409)
    assert "Retry-After" not in late.headers


def test_a_patient_is_encoded_once_for_all_arms_and_seeds(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, encode = [], SamplerWorker._encode

    def counted(self: SamplerWorker, patient: PatientRef) -> PatientEncoding:
        encoded.append(patient.subject)
        return encode(self, patient)

    monkeypatch.setattr(SamplerWorker, "_encode", counted)
    wait_for_success(client, client.create_forecast("sub-04", samples=6))
    assert encoded == ["sub-04"]


def test_a_cancelled_forecast_stops_drawing_and_stays_cancelled(
    client: Client, service: Service, http: httpx2.Client
) -> None:
    service.paused = True
    job = client.create_forecast("sub-01", samples=20)
    before = len(service.drawn)
    client.delete(job)
    client.delete(job)
    service.paused = False
    assert client.status(job)["state"] == "cancelled"
    assert service.finished[-1] == "cancelled"
    wait_until(lambda: service.slots == 0)
    assert len(service.drawn) == before
    assert_problem(http.get(f"/v1/forecasts/{job}/result"), 409)


def test_a_cancelled_forecast_frees_its_slots_within_a_step(
    client: Client, service: Service
) -> None:
    service.step_delay_s = 0.2
    job = client.create_forecast("sub-01", samples=20, sampler={"num_steps": 512})
    wait_until(lambda: service.slots > 0)
    before = service.steps
    client.delete(job)
    wait_until(lambda: service.slots == 0)
    # The one under way, one that may begin until the engine hears of it, and one without samples.
    assert service.steps - before <= 3


def test_a_deleted_forecast_leaves_no_file(
    client: Client, service: Service, http: httpx2.Client
) -> None:
    job = wait_for_success(client, client.create_forecast("sub-01", samples=2))
    folder = result_dir(service.settings.artifacts, job)
    assert folder.is_dir()
    client.delete(job)
    client.delete(job)
    assert client.status(job)["state"] == "deleted"
    assert_problem(http.get(f"/v1/forecasts/{job}/result"), 409)
    assert not folder.exists()


def test_missing_result_files_are_410(
    client: Client, service: Service, http: httpx2.Client
) -> None:
    job = wait_for_success(client, client.create_forecast("sub-01", samples=2))
    shutil.rmtree(result_dir(service.settings.artifacts, job))
    for path in ("result", f"arms/{SPEC.arms[0]}", "derivative"):
        assert_problem(http.get(f"/v1/forecasts/{job}/{path}"), 410)
    files = {"series": ("1.dcm", b"")}
    assert_problem(http.post(f"/v1/forecasts/{job}/segmentation", files=files), 410)


def test_a_result_deleted_while_it_is_zipped_is_409(
    client: Client, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = wait_for_success(client, client.create_forecast("sub-01", samples=2))

    def zip_half(folder: Path, into: IO[bytes]) -> None:
        next(folder.rglob("*.json")).unlink()
        zip_all(folder, into)
        client.delete(job)

    zip_all = results._zip
    monkeypatch.setattr(results, "_zip", zip_half)
    assert_problem(http.get(f"/v1/forecasts/{job}/derivative"), 409)


def test_the_derivative_is_a_zip_of_all_result_files(
    client: Client, service: Service, tmp_path: Path, real_figures: None
) -> None:
    job = wait_for_success(client, client.create_forecast("sub-02", samples=2))
    client.download_derivative(job, tmp_path / "all.zip")
    folder = result_dir(service.settings.artifacts, job)
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    written = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert files == {name: path.read_bytes() for name, path in written.items()}
    assert len([name for name in files if name.endswith("_probseg.nii.gz")]) == 3
    (figure,) = (content for name, content in files.items() if name.endswith(".png"))
    assert len(figure) > 10_000  # not blank


def test_the_bundle_is_a_model_of_the_open_inference_protocol(
    http: httpx2.Client, root: Path, service: Service
) -> None:
    assert http.get("/v2").json()["name"] == "lesioncast"
    model = http.get("/v2/models/lesioncast").json()
    assert model["versions"] == [load_bundle(root / "bundle").digest]
    assert {"name": "w048/flair", "datatype": "FP32", "shape": list(SPEC.slab)} in model["inputs"]
    assert model["outputs"][0]["shape"] == list(SPEC.slab)
    assert http.get("/v2/models/lesioncast/ready").json() == {"name": "lesioncast", "ready": True}
    service.fail_draws = True
    assert http.get("/v2/models/lesioncast/ready").status_code == 503
    service.fail_draws = False
    assert model["sessions"] == [["w000", "w048"], ["w000"]]
    assert_problem(http.get("/v2/models/other"), 404, "name")
    assert_problem(http.get("/v2/models/other/ready"), 404, "name")


def test_a_full_queue_is_429_with_a_time_to_wait(
    client: Client, service: Service, http: httpx2.Client
) -> None:
    service.paused = True
    jobs = [client.create_forecast("sub-01", samples=2) for _ in range(3)]
    answer = http.post("/v1/forecasts", json={"subject": "sub-01"})
    assert_problem(answer, 429)
    assert int(answer.headers["Retry-After"]) >= 1
    service.paused = False
    jobs.append(client.create_forecast("sub-01", samples=2))  # waits as long as it is told to
    for job in jobs:
        wait_for_success(client, job)


def test_an_idempotency_key_creates_one_forecast_per_client(
    http: httpx2.Client, client: Client
) -> None:
    def post(seed: int, owner: str = "hospital-a") -> httpx2.Response:
        request = {"subject": "sub-01", "samples": 2, "seed": seed}
        headers = {"Idempotency-Key": "once", "Authorization": f"Bearer {KEYS[owner]}"}
        return http.post("/v1/forecasts", json=request, headers=headers)

    first, again = post(1), post(1)
    assert first.status_code == again.status_code == 202
    assert first.headers["Location"] == again.headers["Location"]
    assert_problem(post(2), 422, "Idempotency-Key")
    another = post(1, "hospital-b")
    assert another.status_code == 202
    assert another.json()["id"] != first.json()["id"]
    job = wait_for_success(client, first.json()["id"])
    client.delete(job)
    late = post(1)
    assert (late.status_code, late.json()["id"], late.json()["state"]) == (202, job, "deleted")


@pytest.mark.parametrize("key", ["", "k" * 201])
def test_the_length_of_an_idempotency_key_is_bounded(http: httpx2.Client, key: str) -> None:
    request = {"subject": "sub-01", "samples": 2}
    answer = http.post("/v1/forecasts", json=request, headers={"Idempotency-Key": key})
    assert_problem(answer, 422, "idempotency-key")


def test_a_renamed_field_names_its_successor(http: httpx2.Client) -> None:
    request = {"subject": "sub-01", "error": 0.1}
    problem = assert_problem(http.post("/v1/forecasts", json=request), 422, "error")
    assert problem["detail"] == "error: This field is now called tolerance"


@pytest.mark.parametrize(
    ("request_body", "field"),
    [
        ({}, "subject"),
        ({"subject": "sub-99"}, "subject"),
        ({"subject": "../../etc/passwd"}, "subject"),
        ({"subject": "sub-01", "arms": []}, "arms"),
        ({"subject": "sub-01", "arms": [SPEC.arms[0], "homeopathy"]}, "arms.1"),
        ({"subject": "sub-01", "arms": [SPEC.arms[0]] * 2}, "arms.1"),
        ({"subject": "sub-01", "samples": 1}, "samples"),
        ({"subject": "sub-01", "samples": 21}, "samples"),
        ({"subject": "sub-01", "samples": "3"}, "samples"),
        ({"subject": "sub-01", "samples": 10**400}, "samples"),
        ({"subject": "sub-01", "seed": -1}, "seed"),
        ({"subject": "sub-01", "seed": 2**63}, "seed"),
        ({"subject": "sub-01", "reference_arm": "homeopathy"}, "reference_arm"),
        ({"subject": "sub-01", "sessions": ["w048"]}, "sessions"),
        ({"subject": "sub-01", "sessions": []}, "sessions"),
        ({"subject": "sub-01", "sample": 3}, "sample"),
        ({"subject": "sub-01", "tolerance": 0}, "tolerance"),
        ({"subject": "sub-01", "tolerance": 0.5}, "tolerance"),
        ({"subject": "sub-01", "sampler": {"num_steps": 0}}, "sampler.num_steps"),
        ({"subject": "sub-01", "sampler": {"num_steps": 513}}, "sampler.num_steps"),
        ({"subject": "sub-01", "sampler": {"num_steps": 10**400}}, "sampler.num_steps"),
        ({"subject": "sub-01", "sampler": {"guidance": 10**400}}, "sampler.guidance"),
        ({"subject": "sub-01", "sampler": {"eta": 0.5}}, "sampler.eta"),
        ({"subject": "sub-01", "sampler": {"guidance": 6}}, "sampler.guidance"),
        ({"subject": "sub-01", "sampler": {"solver": "ddim"}}, "sampler.solver"),
    ],
)
def test_an_invalid_request_names_the_field(
    http: httpx2.Client, request_body: dict[str, object], field: str
) -> None:
    assert (
        field in assert_problem(http.post("/v1/forecasts", json=request_body), 422, field)["detail"]
    )


def test_a_body_that_is_no_request_is_refused(http: httpx2.Client) -> None:
    json_type = {"Content-Type": "application/json"}
    for content in (b"", b"{", b"[]", b'{"subject": "\xff"}', b'"sub-01"'):
        assert_problem(http.post("/v1/forecasts", content=content, headers=json_type), 422, "body")
    problem = assert_problem(http.post("/v1/forecasts", content=b"{}"), 415, "Content-Type")
    assert "got none" in problem["detail"]
    assert_problem(http.post("/v1/forecasts", content=b" " * 2001, headers=json_type), 413)

    def unannounced() -> Iterator[bytes]:
        for _ in range(3):
            yield b" " * 1000

    assert_problem(http.post("/v1/forecasts", content=unannounced(), headers=json_type), 413)


def test_unknown_paths_ids_and_arms_are_problems(
    client: Client, service: Service, http: httpx2.Client
) -> None:
    before, unknown = len(service.problems), "0" * 32
    assert_problem(http.get(f"/v1/forecasts/{unknown}"), 404, "id")
    assert_problem(http.get(f"/v1/forecasts/{unknown}/events"), 404, "id")
    assert_problem(http.delete(f"/v1/forecasts/{unknown}"), 404, "id")
    assert_problem(http.get("/elsewhere"), 404)
    assert_problem(http.put("/v1/forecasts"), 405)
    assert_problem(httpx2.get(f"{service.url}/v1/forecasts/unknown"), 401, "Authorization")
    assert service.problems[before:] == [404, 404, 404, 404, 405, 401]
    job = wait_for_success(client, client.create_forecast("sub-01", samples=2))
    assert_problem(http.get(f"/v1/forecasts/{job}/arms/..%2F..%2Fkeys.txt"), 404)
    assert_problem(http.get(f"/v1/forecasts/{job}/arms/homeopathy"), 404, "arm")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/events"),
        ("GET", "/result"),
        ("GET", "/arms/placebo"),
        ("GET", "/derivative"),
        ("POST", "/segmentation"),
    ],
)
@pytest.mark.parametrize("name", ["%00", "unknown", "A" * 32, "0" * 31, "%C3%A9" * 32, "a" * 4000])
def test_malformed_id_is_404_without_a_query(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, method: str, path: str, name: str
) -> None:
    monkeypatch.setattr(JobRepository, "get", broken_on_purpose)
    assert_problem(http.request(method, f"/v1/forecasts/{name}{path}"), 404, "id")


def broken_on_purpose(*_: object, **__: object) -> None:
    raise RuntimeError("broken on purpose")


def test_an_unexpected_error_is_a_500_without_details(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    monkeypatch.setattr(JobRepository, "get", broken_on_purpose)
    problem = assert_problem(http.get(f"/v1/forecasts/{'0' * 32}"), 500)
    assert "on purpose" not in json.dumps(problem)
    wait_until(lambda: "broken on purpose" in caplog.text)  # it is logged after the answer


def test_a_plain_text_error_of_a_proxy_raises_api_error() -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(503, text="Unavailable: try again")

    with Client("http://service") as client:
        client._http = httpx2.Client(base_url="http://s", transport=httpx2.MockTransport(answer))
        for ask in (
            client.status,
            client.delete,
            client.result,
            lambda job: next(client.stream_events(job)),
        ):
            with pytest.raises(ApiError, match="503 Service Unavailable: Unavailable: try again"):
                ask("0" * 32)


def test_a_failed_forecast_points_to_the_log(
    client: Client, service: Service, http: httpx2.Client
) -> None:
    service.fail_draws = True
    job = client.create_forecast("sub-01", samples=2)
    last = list(client.stream_events(job))[-1]
    assert last["state"] == "failed"
    assert job in last["error"]
    assert "on purpose" not in json.dumps(last)
    for path in ("result", f"arms/{SPEC.arms[0]}", "derivative"):
        assert "failed" in assert_problem(http.get(f"/v1/forecasts/{job}/{path}"), 409)["detail"]
    client.delete(job)
    assert client.status(job)["state"] == "deleted"


def test_every_route_except_health_needs_a_key(service: Service) -> None:
    for path in ("/v1/forecasts/x", "/openapi.json", "/elsewhere"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a"}):
            answer = httpx2.get(service.url + path, headers=headers)
            assert_problem(answer, 401, "Authorization")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert httpx2.get(f"{service.url}/v2/health/live").json() == {"live": True}
    assert httpx2.get(f"{service.url}/v2/health/ready").status_code == 200


def test_the_shipped_service_yaml_has_valid_settings() -> None:
    config = yaml.safe_load((ROOT / "serve" / "service.yaml").read_text())
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    settings = ServiceSettings(**application.args)
    assert settings.demo


def test_ready_is_503_when_nothing_can_draw(service: Service) -> None:
    service.fail_draws = True
    assert httpx2.get(f"{service.url}/v2/health/ready").status_code == 503
    service.fail_draws = False


def test_a_forecast_is_visible_to_its_owner_only(
    client: Client, http: httpx2.Client, service: Service
) -> None:
    job = wait_for_success(client, client.create_forecast("sub-01", samples=2))
    url, other = f"/v1/forecasts/{job}", {"Authorization": f"Bearer {KEYS['hospital-b']}"}
    for path in ("", "/events", "/result", f"/arms/{SPEC.arms[0]}", "/derivative"):
        assert http.get(url + path).status_code == 200
        assert_problem(http.get(url + path, headers=other), 404, "id")
    files = {"series": ("1.dcm", b"")}
    assert_problem(http.post(f"{url}/segmentation", files=files), 422, "series")
    assert_problem(http.post(f"{url}/segmentation", files=files, headers=other), 404, "id")
    assert_problem(http.delete(url, headers=other), 404, "id")
    assert client.status(job)["state"] == "succeeded"


def test_demo_mode_refuses_other_host_names(root: Path) -> None:
    with run_service(settings_in(root, "demo", keys=None, demo=True)) as service:
        assert httpx2.get(f"{service.url}/openapi.json").json()["openapi"].startswith("3.1")
        answer = httpx2.get(f"{service.url}/openapi.json", headers={"Host": "evil.example"})
        assert_problem(answer, 403)


def test_a_restarted_service_continues_with_the_stored_blocks(root: Path) -> None:
    """The first service stops with some blocks drawn, without a notice in advance."""
    settings = settings_in(root, "restart", keys=None, demo=True)
    with run_service(settings) as first, Client(first.url) as client:
        whole = client.result(wait_for_success(client, client.create_forecast("sub-02", samples=6)))
        first.budget = 4
        job = client.create_forecast("sub-02", samples=6)
        wait_until(lambda: client.status(job)["progress"] == {"done": 8, "total": 18})
    records = open_repository(settings)
    assert [job_row.id for job_row in records.unfinished()] == [job]
    with run_service(settings) as second, Client(second.url) as client:
        assert client.result(wait_for_success(client, job)) == whole
        assert len(second.drawn) == 5
        assert second.first_samples_s == []
        assert summary_path(settings.artifacts / job, "sub-02").is_file()


def test_sampling_stops_at_the_requested_tolerance(client: Client) -> None:
    job = wait_for_success(client, client.create_forecast("sub-02", samples=20, tolerance=0.3))
    record = client.result(job)
    drawn = record["samples"]
    assert 2 < drawn <= 20  # of 2 the interval is too wide whatever they show
    intervals = [arm["active_fraction"] for arm in record["arms"].values()]
    assert drawn == 20 or all((p["high"] - p["low"]) / 2 <= 0.3 for p in intervals)
    assert client.status(job)["progress"] == {"done": 3 * drawn, "total": 3 * drawn}
    assert any("known to 0.3" in notice for notice in record["notes"])
    plain = client.result(wait_for_success(client, client.create_forecast("sub-02", samples=drawn)))
    assert plain["arms"] == record["arms"]


def test_a_request_may_override_sampler_settings(client: Client) -> None:
    plain, longer = (
        client.result(
            wait_for_success(client, client.create_forecast("sub-02", samples=2, sampler=sampler))
        )
        for sampler in ({}, {"num_steps": 4, "guidance": 2.0})
    )
    assert plain["arms"] != longer["arms"]
    notice = "Drawn with num_steps 4, guidance 2 in place of the bundle's own."
    assert notice in longer["notes"]
    assert notice not in plain["notes"]


def test_a_forecast_may_use_the_images_before_treatment_alone(client: Client, root: Path) -> None:
    every, start = (
        client.result(
            wait_for_success(client, client.create_forecast("sub-02", samples=2, sessions=sessions))
        )
        for sessions in (None, ["w000"])
    )
    assert (every["sessions"], start["sessions"]) == (["w000", "w048"], ["w000"])
    assert every["arms"] != start["arms"]
    assert sessions_note(("w000", "w048"), VisitSchedule()) in every["notes"]
    assert sessions_note(("w000",), VisitSchedule()) in start["notes"]
    case = open_store(root / "store.zarr").case("sub-02").index
    requests = [EnsembleRequest(case, arm, ("w000",)) for arm in range(3)]
    seeds = {case: sample_seeds(0, "sub-02", 2)}
    draw = build_sampler(root / "bundle", root / "store.zarr", device="cpu")
    drawn = ensembles(requests, seeds, map(draw, plan_batches(requests, seeds, batch_size=8)))
    volumes = [float(ensemble.volume.mean()) for ensemble in drawn]
    assert [arm["volume_mm3"]["mean"] for arm in start["arms"].values()] == volumes

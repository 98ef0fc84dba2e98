"""Disturbances of a running service lose and change no accepted forecast."""

import asyncio
from collections.abc import Iterator
from errno import EIO
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError
from sqlalchemy import create_engine, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from lesioncast.bundle.bundle import load_bundle
from lesioncast.forecasting.output.summary import ForecastSummary
from lesioncast.forecasting.sampling import SampleBatch
from serve import app
from serve.artifacts import jobs_with_artifacts, result_dir, stale_uploads
from serve.client import ApiError, Client
from serve.db.models import DrawnBlock
from serve.db.open import open_repository
from serve.db.repository import JobRepository
from serve.inference.reports import EngineStoppedError
from serve.settings import ServiceSettings
from serve.worker.loaded_model import LoadedModel
from serve.worker.retry import (
    INITIAL_DELAY_S,
    MAX_DELAY_S,
    OtherBundleError,
    SamplersUnavailableError,
    backoff_delays,
    failure_of,
    is_transient,
)
from tests.support.forecast import write_bundle, write_store
from tests.support.service import Service, run_service, wait_for_success, wait_until

SAMPLES = 6
BLOCKS = 9  # of two samples, under three arms
FIRST = {"done": 8, "total": 18}  # with a budget of four blocks


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recovery")
    write_store(folder / "store.zarr", folder / "bids", test=2)
    write_bundle(folder / "bundle")
    write_bundle(folder / "other", num_steps=5)
    return folder


def settings_in(root: Path, artifacts: Path, **given: object) -> ServiceSettings:
    chosen = {"bundle": root / "bundle"} | given
    return ServiceSettings(
        store=root / "store.zarr", artifacts=artifacts, demo=True, seeds_per_block=2, **chosen
    )  # type: ignore[arg-type]


@pytest.fixture
def settings(root: Path, tmp_path: Path) -> ServiceSettings:
    return settings_in(root, tmp_path)


@pytest.fixture
def service(settings: ServiceSettings) -> Iterator[Service]:
    with run_service(settings) as service:
        yield service


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the result of an undisturbed forecast, by the name of the bundle."""
    results = {}
    for name in ("bundle", "other"):
        settings = settings_in(root, tmp_path_factory.mktemp("whole"), bundle=root / name)
        with run_service(settings) as service, Client(service.url) as client:
            results[name] = client.result(wait_for_success(client, ask(client)))
    return results


def ask(client: Client) -> str:
    return client.create_forecast("sub-02", samples=SAMPLES)


def ask_midway(client: Client, service: Service) -> str:
    """Request a forecast, and wait until four blocks are drawn and the budget is used up."""
    service.budget = 4
    job = ask(client)
    wait_until(lambda: client.status(job)["progress"] == FIRST)
    return job


def test_a_lost_block_is_drawn_again_and_changes_no_other(
    client: Client, service: Service, whole: dict[str, Any]
) -> None:
    job = ask_midway(client, service)
    lost = service.drawn[0]
    engine = create_engine(service.settings.database_url)
    with Session(engine) as session, session.begin():
        place = (
            DrawnBlock.job == job,
            DrawnBlock.arm == lost.arm,
            DrawnBlock.first_seed_index == lost.first,
        )
        session.execute(update(DrawnBlock).where(*place).values(bundle="another"))
    engine.dispose()
    service.budget = BLOCKS
    assert client.result(wait_for_success(client, job)) == whole["bundle"]
    assert service.drawn.count(lost) == 2


def test_a_forecast_starts_again_when_the_bundle_is_replaced(
    settings: ServiceSettings, root: Path, whole: dict[str, Any]
) -> None:
    with run_service(settings) as first, Client(first.url) as client:
        job = ask_midway(client, first)
    with (
        run_service(settings.model_copy(update={"bundle": root / "other"})) as second,
        Client(second.url) as client,
    ):
        second.budget = 0
        assert client.status(job)["progress"] == {"done": 0, "total": 18}
        second.budget = BLOCKS
        assert client.result(wait_for_success(client, job)) == whole["other"] != whole["bundle"]
        assert len(second.drawn) == BLOCKS


def test_a_forecast_waits_for_a_restart_after_the_bundle_was_replaced_where_it_lies(
    settings: ServiceSettings, tmp_path: Path, whole: dict[str, Any]
) -> None:
    mounted = settings.model_copy(update={"bundle": tmp_path / "bundle"})
    write_bundle(mounted.bundle)
    with run_service(mounted) as first, Client(first.url) as client:
        first.budget = 4
        job = ask(client)
        write_bundle(mounted.bundle, num_steps=5)
        first.budget = BLOCKS
        wait_until(lambda: ("OtherBundleError", "postponed") in first.errors)
        assert client.status(job)["state"] == "running"
    with run_service(mounted) as second, Client(second.url) as client:
        assert client.result(wait_for_success(client, job)) == whole["other"]


def test_samples_of_two_bundles_do_not_mix(
    settings: ServiceSettings, root: Path, whole: dict[str, Any]
) -> None:
    changed = settings.model_copy(update={"bundle": root / "other"})
    assert load_bundle(root / "other").digest != load_bundle(root / "bundle").digest
    with (
        run_service(settings) as first,
        run_service(changed) as second,
        Client(second.url) as client,
    ):
        first.budget = second.budget = 4
        job = ask(client)
        wait_until(lambda: len(first.drawn) == len(second.drawn) == 4)
        second.budget = BLOCKS
        assert client.result(wait_for_success(client, job)) == whole["other"]
        assert len(second.drawn) == BLOCKS


def ask_long(client: Client, service: Service) -> str:
    """Request a forecast that takes at least a minute, and wait until it is drawn."""
    job = client.create_forecast("sub-01", samples=256, sampler={"num_steps": 512})
    wait_until(lambda: service.slots > 0)
    return job


def end(service: Service, job: str) -> None:
    """Cancel a forecast as another process does, without notifying the worker."""
    records = open_repository(service.settings)
    assert records.finish(job, "cancelled")
    records.close()


def nothing_left(service: Service, job: str) -> bool:
    records = open_repository(service.settings)
    parts = records.load_blocks(job, load_bundle(service.settings.bundle).digest)
    records.close()
    return not parts and job not in jobs_with_artifacts(service.settings.artifacts)


def test_drawing_stops_when_another_process_cancels(client: Client, service: Service) -> None:
    job = ask_long(client, service)
    end(service, job)
    wait_until(lambda: service.slots == 0, seconds=10)
    wait_until(lambda: nothing_left(service, job), seconds=10)
    assert service.finished == []
    wait_for_success(client, ask(client))
    assert len(service.first_samples_s) == 1


def test_a_forecast_can_be_cancelled_while_the_worker_is_unreachable(
    client: Client, service: Service
) -> None:
    service.ignore_wakeups = True
    job = ask_long(client, service)
    client.delete(job)
    assert client.status(job)["state"] == "cancelled"
    wait_until(lambda: service.slots == 0, seconds=10)
    wait_until(lambda: nothing_left(service, job), seconds=10)
    job = wait_for_success(client, ask(client))
    client.delete(job)
    assert nothing_left(service, job)


def test_a_forecast_cancelled_while_it_is_written_leaves_no_file(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = LoadedModel.write_result, []

    def cancelled(self: LoadedModel, job: Any, parts: Any) -> ForecastSummary:
        written.append(write(self, job, parts))
        end(service, job.id)
        return written[0]

    monkeypatch.setattr(LoadedModel, "write_result", cancelled)
    job = ask(client)
    wait_until(lambda: bool(written) and nothing_left(service, job), seconds=10)
    assert client.status(job)["state"] == "cancelled"


def test_files_of_a_cancelled_forecast_are_removed_by_the_next_worker(
    settings: ServiceSettings,
) -> None:
    with run_service(settings) as first, Client(first.url) as client:
        first.paused = True
        job, kept = ask(client), ask(client)
        client.delete(job)
    for job_id in (job, kept):
        result_dir(settings.artifacts, job_id).mkdir()
    with run_service(settings) as second, Client(second.url) as client:
        wait_until(lambda: nothing_left(second, job), seconds=10)
        wait_for_success(client, kept)


def once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Exception) -> None:
    """Make a method raise an error the first time that it is called."""
    errors, method = [error], getattr(owner, name)

    def failing(*given: Any, **named: Any) -> Any:
        if errors:
            raise errors.pop()
        return method(*given, **named)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (JobRepository, "mark_running", OperationalError("update", {}, Exception("server closed"))),
        (
            JobRepository,
            "save_block",
            OperationalError("insert", {}, Exception("database is locked")),
        ),
        (JobRepository, "finish", OperationalError("update", {}, Exception("server closed"))),
        (LoadedModel, "write_result", OSError(28, "No space left on device")),
    ],
)
def test_a_transient_error_fails_no_forecast(
    client: Client,
    service: Service,
    whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    error: Exception,
) -> None:
    once(monkeypatch, owner, name, error)
    assert client.result(wait_for_success(client, ask(client))) == whole["bundle"]
    wait_until(lambda: service.finished == ["succeeded"])
    assert service.errors == [(type(error).__name__, "postponed")]


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError("its image")])
def test_a_permanent_error_fails_the_forecast(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    once(monkeypatch, LoadedModel, "write_result", error)
    job = ask(client)
    assert list(client.stream_events(job))[-1]["state"] == "failed"
    with pytest.raises(ApiError, match="failed: it has no result"):
        client.result(job)
    wait_until(lambda: service.finished == ["failed"])
    wait_until(lambda: service.errors == [(type(error).__name__, "failed")])


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (DeploymentUnavailableError(DeploymentID("SamplerDeployment")), SamplersUnavailableError),
        (EngineStoppedError("a step failed"), EngineStoppedError),
    ],
)
def test_unavailable_samplers_are_transient_and_stopped_engines_are_not(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]
) -> None:
    monkeypatch.setattr(app, "INITIAL_BACKOFF_S", 0.0)
    calls = []

    class Handle:
        """A handle whose replicas are unavailable."""

        @property
        def draw(self) -> "Handle":
            return self

        async def remote(self, *call: object) -> SampleBatch:
            calls.append(call)
            raise raised

    with pytest.raises(expected) as error:
        asyncio.run(app.draw_with_retries(Handle(), "job", bundle="own"))  # type: ignore[arg-type]
    assert calls == [("job",)] * app.MAX_ATTEMPTS
    assert is_transient(error.value) == (expected is SamplersUnavailableError)


@pytest.mark.parametrize("own", [True, False])
def test_samples_of_a_replaced_bundle_do_not_count_as_those_of_the_old_one(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    monkeypatch.setattr(app, "INITIAL_BACKOFF_S", 0.0)
    calls: list[int] = []

    class Handle:
        """A handle to a replica of another bundle and, if `own`, one of the worker's bundle."""

        @property
        def draw(self) -> "Handle":
            return self

        async def remote(self, *_: object) -> app.BundleSamples:
            calls.append(len(calls))
            bundle = "own" if own and len(calls) == 2 else "other"
            return app.BundleSamples(bundle, bundle)  # type: ignore[arg-type]

    drawing = app.draw_with_retries(Handle(), "job", bundle="own")  # type: ignore[arg-type]
    if own:
        assert (asyncio.run(drawing), len(calls)) == ("own", 2)
        return
    with pytest.raises(OtherBundleError, match="restart the service") as error:
        asyncio.run(drawing)
    assert len(calls) == app.MAX_ATTEMPTS
    assert failure_of(error.value).transient


def test_a_group_of_errors_is_transient_if_all_of_them_are() -> None:
    assert is_transient(
        ExceptionGroup("drawing", [TimeoutError(), ExceptionGroup("inner", [OSError(EIO, "")])])
    )
    assert not is_transient(ExceptionGroup("drawing", [TimeoutError(), ValueError()]))


def test_backoff_delays_grow_up_to_a_maximum() -> None:
    first = [wait for wait, _ in zip(backoff_delays(), range(20), strict=False)]
    assert first[:3] == [INITIAL_DELAY_S, 2 * INITIAL_DELAY_S, 4 * INITIAL_DELAY_S]
    assert first == sorted(first)
    assert first[-1] == MAX_DELAY_S


@pytest.mark.parametrize("name", ["unfinished", "removed_job_ids"])
def test_the_worker_survives_an_error_of_one_poll(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    once(monkeypatch, JobRepository, name, RuntimeError("of one look"))
    with run_service(settings) as service, Client(service.url) as client:
        job = ask(client)
        wait_until(lambda: client.status(job)["state"] == "succeeded", seconds=20)


def test_an_upload_removed_while_listing_is_not_stale(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "gone").symlink_to("nowhere")
    assert stale_uploads(tmp_path) == []


@pytest.mark.parametrize("before", [True, False])
def test_progress_never_decreases_when_a_forecast_finishes_between_two_reads(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    job = ask_midway(client, service)
    lesions = JobRepository.lesion_counts

    def ended(self: JobRepository, *of: str) -> list[Any]:
        if before:
            self.finish(job, "succeeded")
        counts = lesions(self, *of)
        self.finish(job, "succeeded")
        return counts

    monkeypatch.setattr(JobRepository, "lesion_counts", ended)
    status = client.status(job)
    assert (status["state"], status["progress"]["done"]) == ("succeeded", 18)
    assert status["partial"] == {}


def test_blocks_are_deleted_even_if_the_first_cleanup_fails(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = OperationalError("delete", {}, Exception("server closed"))
    once(monkeypatch, JobRepository, "delete_blocks", lost)
    job = wait_for_success(client, ask(client))
    records = open_repository(service.settings)
    digest = load_bundle(service.settings.bundle).digest
    wait_until(lambda: records.load_blocks(job, digest) == [], seconds=10)
    records.close()

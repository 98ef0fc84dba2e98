"""What disturbs the service while it runs; no accepted forecast is lost or changed by it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError
from sqlalchemy import create_engine, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from lesioncast.bundle.bundle import load_bundle
from lesioncast.forecasting.sampling import SampleBatch
from serve import app
from serve.artifacts import jobs_with_artifacts, result_dir, stale_uploads
from serve.client import ApiError, Client
from serve.db.models import DrawnBlock
from serve.db.repository import JobRepository
from serve.inference.sampler import EngineStoppedError
from serve.settings import ServiceSettings
from serve.worker.retry import (
    FIRST_WAIT,
    LONGEST_WAIT,
    SamplersUnavailableError,
    backoff_delays,
    is_transient,
)
from serve.worker.worker import LoadedModel
from tests.support.forecast import write_bundle, write_store
from tests.support.service import Service, finished, running, until

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
    with running(settings) as service:
        yield service


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What comes of an undisturbed forecast, by the name of the bundle."""
    found = {}
    for name in ("bundle", "other"):
        settings = settings_in(root, tmp_path_factory.mktemp("whole"), bundle=root / name)
        with running(settings) as service, Client(service.url) as client:
            found[name] = client.result(finished(client, ask(client)))
    return found


def ask(client: Client) -> str:
    return client.create_forecast("sub-02", samples=SAMPLES)


def ask_midway(client: Client, service: Service) -> str:
    """A forecast of which four blocks are drawn, and that waits for more `budget`."""
    service.budget = 4
    job = ask(client)
    until(lambda: client.status(job)["progress"] == FIRST)
    return job


def test_a_block_that_is_lost_is_drawn_again_and_shifts_no_other(
    client: Client, service: Service, whole: dict[str, Any]
) -> None:
    job = ask_midway(client, service)
    lost = service.drawn[0]
    engine = create_engine(service.settings.database_url)
    with Session(engine) as session, session.begin():
        place = (DrawnBlock.job == job, DrawnBlock.arm == lost.arm, DrawnBlock.first == lost.first)
        session.execute(update(DrawnBlock).where(*place).values(bundle="another"))
    engine.dispose()
    service.budget = BLOCKS
    assert client.result(finished(client, job)) == whole["bundle"]
    assert service.drawn.count(lost) == 2


def test_a_forecast_starts_again_where_the_bundle_is_exchanged(
    settings: ServiceSettings, root: Path, whole: dict[str, Any]
) -> None:
    with running(settings) as first, Client(first.url) as client:
        job = ask_midway(client, first)
    with (
        running(settings.model_copy(update={"bundle": root / "other"})) as second,
        Client(second.url) as client,
    ):
        second.budget = 0
        assert client.status(job)["progress"] == {"done": 0, "total": 18}
        second.budget = BLOCKS
        assert client.result(finished(client, job)) == whole["other"] != whole["bundle"]
        assert len(second.drawn) == BLOCKS


def test_two_bundles_that_draw_for_one_forecast_do_not_mix(
    settings: ServiceSettings, root: Path, whole: dict[str, Any]
) -> None:
    changed = settings.model_copy(update={"bundle": root / "other"})
    assert load_bundle(root / "other").digest != load_bundle(root / "bundle").digest
    with running(settings) as first, running(changed) as second, Client(second.url) as client:
        first.budget = second.budget = 4
        job = ask(client)
        until(lambda: len(first.drawn) == len(second.drawn) == 4)
        second.budget = BLOCKS
        assert client.result(finished(client, job)) == whole["other"]
        assert len(second.drawn) == BLOCKS


def ask_long(client: Client, service: Service) -> str:
    """A forecast that is being drawn, for a minute at least."""
    job = client.create_forecast("sub-01", samples=256, sampler={"num_steps": 512})
    until(lambda: service.slots > 0)
    return job


def end(service: Service, job: str) -> None:
    """As another process does, which does not tell this one."""
    records = JobRepository(service.settings.database_url)
    assert records.finish(job, "cancelled")
    records.close()


def nothing_left(service: Service, job: str) -> bool:
    records = JobRepository(service.settings.database_url)
    parts = records.load_blocks(job, load_bundle(service.settings.bundle).digest)
    records.close()
    return not parts and job not in jobs_with_artifacts(service.settings.artifacts)


def test_drawing_stops_where_a_cancel_misses_the_forecaster(
    client: Client, service: Service
) -> None:
    job = ask_long(client, service)
    end(service, job)
    until(lambda: service.slots == 0, seconds=10)
    until(lambda: nothing_left(service, job), seconds=10)
    assert service.ended == []
    finished(client, ask(client))
    assert len(service.began) == 1


def test_a_forecaster_that_is_away_keeps_no_client_from_an_end(
    client: Client, service: Service
) -> None:
    service.deaf = True
    job = ask_long(client, service)
    client.delete(job)
    assert client.status(job)["state"] == "cancelled"
    until(lambda: service.slots == 0, seconds=10)
    until(lambda: nothing_left(service, job), seconds=10)
    job = finished(client, ask(client))
    client.delete(job)
    assert nothing_left(service, job)


def test_a_forecast_that_is_cancelled_while_it_is_written_leaves_no_file(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = LoadedModel.write, []

    def cancelled(self: LoadedModel, job: Any, parts: Any) -> Path:
        written.append(write(self, job, parts))
        end(service, job.id)
        return written[0]

    monkeypatch.setattr(LoadedModel, "write", cancelled)
    job = ask(client)
    until(lambda: bool(written) and nothing_left(service, job), seconds=10)
    assert client.status(job)["state"] == "cancelled"


def test_files_of_a_cancelled_forecast_go_though_their_forecaster_died(
    settings: ServiceSettings,
) -> None:
    with running(settings) as first, Client(first.url) as client:
        first.held = True
        job, kept = ask(client), ask(client)
        client.delete(job)
    for each in (job, kept):
        result_dir(settings.artifacts, each).mkdir()
    with running(settings) as second, Client(second.url) as client:
        until(lambda: nothing_left(second, job), seconds=10)
        finished(client, kept)


def once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Exception) -> None:
    """The method fails the first time."""
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
        (LoadedModel, "write", OSError(28, "No space left on device")),
    ],
)
def test_an_error_that_passes_fails_no_forecast(
    client: Client,
    service: Service,
    whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    error: Exception,
) -> None:
    once(monkeypatch, owner, name, error)
    assert client.result(finished(client, ask(client))) == whole["bundle"]
    assert service.ended == ["succeeded"]
    assert service.errors == [(type(error).__name__, "postponed")]


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError("its image")])
def test_an_error_of_the_forecast_itself_ends_it(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    once(monkeypatch, LoadedModel, "write", error)
    job = ask(client)
    assert list(client.stream_events(job))[-1]["state"] == "failed"
    with pytest.raises(ApiError, match="failed: it has no result"):
        client.result(job)
    assert service.ended == ["failed"]
    assert service.errors == [(type(error).__name__, "failed")]


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (DeploymentUnavailableError(DeploymentID("SamplerReplica")), SamplersUnavailableError),
        (EngineStoppedError("a step failed"), EngineStoppedError),
    ],
)
def test_samplers_that_are_away_pass_and_an_engine_that_always_stops_does_not(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, told: type[Exception]
) -> None:
    monkeypatch.setattr(app, "INITIAL_BACKOFF_S", 0.0)
    calls = []

    class Handle:
        """Its replica is away."""

        @property
        def draw(self) -> "Handle":
            return self

        async def remote(self, *call: object) -> SampleBatch:
            calls.append(call)
            raise raised

    with pytest.raises(told) as error:
        asyncio.run(app.draw_with_retries(Handle(), "job"))  # type: ignore[arg-type]
    assert calls == [("job",)] * app.MAX_ATTEMPTS
    assert is_transient(error.value) == (told is SamplersUnavailableError)


def test_a_group_of_errors_passes_where_all_of_them_do() -> None:
    assert is_transient(
        ExceptionGroup("drawing", [OSError(), ExceptionGroup("inner", [OSError()])])
    )
    assert not is_transient(ExceptionGroup("drawing", [OSError(), ValueError()]))


def test_waits_grow_up_to_a_bound() -> None:
    first = [wait for wait, _ in zip(backoff_delays(), range(20), strict=False)]
    assert first[:3] == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT]
    assert first == sorted(first)
    assert first[-1] == LONGEST_WAIT


@pytest.mark.parametrize("name", ["unfinished", "removed_job_ids"])
def test_the_forecaster_outlives_an_error_of_one_look(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    once(monkeypatch, JobRepository, name, RuntimeError("of one look"))
    with running(settings) as service, Client(service.url) as client:
        job = ask(client)
        until(lambda: client.status(job)["state"] == "succeeded", seconds=20)


def test_an_upload_that_is_removed_while_they_are_listed_is_none(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "gone").symlink_to("nowhere")
    assert stale_uploads(tmp_path) == []


@pytest.mark.parametrize("before", [True, False])
def test_progress_never_goes_back_though_the_end_comes_between_two_reads(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    job = ask_midway(client, service)
    lesions = JobRepository.lesion_counts

    def ended(self: JobRepository, *of: str) -> list[Any]:
        if before:
            self.finish(job, "succeeded")
        found = lesions(self, *of)
        self.finish(job, "succeeded")
        return found

    monkeypatch.setattr(JobRepository, "lesion_counts", ended)
    status = client.status(job)
    assert (status["state"], status["progress"]["done"]) == ("succeeded", 18)
    assert status["partial"] == {}


def test_samples_are_dropped_though_the_database_goes_just_after_the_end(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = OperationalError("delete", {}, Exception("server closed"))
    once(monkeypatch, JobRepository, "delete_blocks", lost)
    job = finished(client, ask(client))
    records = JobRepository(service.settings.database_url)
    digest = load_bundle(service.settings.bundle).digest
    until(lambda: records.load_blocks(job, digest) == [], seconds=10)
    records.close()

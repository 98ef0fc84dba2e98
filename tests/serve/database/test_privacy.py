"""What the service forgets and when, and who on its machine can read what it keeps."""

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import create_engine, text

from lesioncast.imaging.covariates import Covariate
from serve.artifacts import result_dir, upload_dir
from serve.client import Client
from serve.db.audit import read_entries, verify_chain
from serve.db.audit_key import read_audit_keys
from serve.db.open import open_repository
from serve.retention import DAY_S
from serve.settings import ServiceSettings
from serve.worker import worker
from storage import StorageError
from tests.support.bids import path_of
from tests.support.service import (
    AUDIT_KEYS,
    Service,
    assert_problem,
    new_job,
    open_jobs,
    run_service,
    trial_settings,
    wait_for_success,
    wait_until,
    write_trial_served,
)

SUBJECT = "sub-03"
NAME, DIAGNOSIS = "Mustermann77", "secondaryprogressive"
COVARIATES = (Covariate("course", levels=("relapsing", DIAGNOSIS)),)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service that takes covariates and tidies up at every look at the jobs."""
    root = tmp_path_factory.mktemp("privacy")
    write_trial_served(root, unlabelled=SUBJECT, covariates=COVARIATES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "CLEANUP_INTERVAL_S", 0.0)
        patch.setattr(worker, "POLL_SECONDS", 0.1)
        with run_service(trial_settings(root, root / "out", keep_days=30)) as service:
            yield service


def request_forecast(service: Service) -> str:
    """Upload a patient whose name and diagnosis are in every field that can hold them."""
    bids = service.settings.artifacts.parent / "bids"
    images = {
        name: (f"{NAME}.nii", path_of(bids, SUBJECT, *name.split("/")).read_bytes())
        for name in ("w000/flair", "w048/flair")
    }
    request = {"subject": f"sub-{NAME}", "samples": 2, "covariates": {"course": DIAGNOSIS}}
    answer = httpx2.post(
        f"{service.url}/v1/forecasts",
        data={"request": json.dumps(request)},
        files=images,
        headers={"Idempotency-Key": f"visit of {NAME} {time.monotonic_ns()}"},
    )
    assert answer.status_code == 202, answer.text
    assert answer.json()["request"]["covariates"] == {"course": DIAGNOSIS}
    return str(answer.json()["id"])


def files_that_tell(folder: Path) -> list[str]:
    """Return the files that name the patient in their path or anywhere in their bytes."""
    return [
        str(path)
        for path in folder.rglob("*")
        if NAME in str(path)
        or (
            path.is_file() and any(word.encode() in path.read_bytes() for word in (NAME, DIAGNOSIS))
        )
    ]


def age(service: Service, forecast_id: str, days: float) -> None:
    """Let a forecast have finished some days ago."""
    engine = create_engine(service.settings.database_url)
    statement = "UPDATE jobs SET finished = finished - :seconds WHERE id = :id"
    with engine.begin() as connection:
        connection.execute(text(statement), {"seconds": days * DAY_S, "id": forecast_id})
    engine.dispose()


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_deleted_forecast_leaves_neither_name_nor_covariates(
    service: Service, client: Client, end: str
) -> None:
    service.fail_draws, service.paused = end == "failed", end == "cancelled"
    job = request_forecast(service)
    if end != "cancelled":
        assert list(client.stream_events(job))[-1]["state"] == end
    assert files_that_tell(service.settings.artifacts) != []
    client.delete(job)
    service.reset()
    status = client.status(job)
    assert status["state"] == ("cancelled" if end == "cancelled" else "deleted")
    assert status["request"] is None
    assert status["progress"]["total"] == 6
    # A reader of this moment may keep pages of before; the next look at the jobs removes them.
    wait_until(lambda: files_that_tell(service.settings.artifacts) == [], seconds=10)
    client.delete(job)
    (events,) = [list(client.stream_events(job))]
    assert events == [status]


def test_forecast_is_gone_after_keep_days_and_the_audit_says_so(
    service: Service, client: Client
) -> None:
    settings = service.settings
    old, deleted, young = (wait_for_success(client, request_forecast(service)) for _ in range(3))
    client.delete(deleted)
    for job, days in ((old, 31), (deleted, 31), (young, 29)):
        age(service, job, days)
    url = f"{service.url}/v1/forecasts/{old}"
    wait_until(lambda: httpx2.get(url).status_code == 410, seconds=10)
    for path in ("", "/events", "/result", "/arms/placebo", "/derivative"):
        problem = assert_problem(httpx2.get(url + path), 410)
        assert problem["detail"] == "The forecast was removed 30 days after its end."
    assert_problem(httpx2.post(f"{url}/segmentation", files={"series": b""}), 410)
    assert_problem(httpx2.delete(url), 410)
    wait_until(
        lambda: httpx2.get(f"{service.url}/v1/forecasts/{deleted}").status_code == 410, seconds=10
    )
    wait_until(lambda: not result_dir(settings.artifacts, old).exists(), seconds=10)
    assert not upload_dir(settings.artifacts, old).exists()
    assert client.status(young)["state"] == "succeeded"
    assert client.result(young)["subject"] == f"sub-{NAME}"
    client.delete(young)
    wait_until(lambda: files_that_tell(settings.artifacts) == [], seconds=10)
    entries = read_entries(settings.database_url)
    events = [json.loads(entry.record) for entry in entries]
    assert [e["event"] for e in events if e["forecast"] == old] == [
        "accepted",
        "succeeded",
        "expired",
    ]
    assert list(verify_chain(entries, read_audit_keys(settings.audit_key_path))) == []


def test_idempotency_key_can_be_used_again_after_the_forecast_expired(
    service: Service, client: Client
) -> None:
    def post() -> str:
        answer = httpx2.post(
            f"{service.url}/v1/forecasts",
            json={"subject": SUBJECT, "samples": 2},
            headers={"Idempotency-Key": "again"},
        )
        assert answer.status_code == 202
        return str(answer.json()["id"])

    first = wait_for_success(client, post())
    assert post() == first
    age(service, first, 31)
    url = f"{service.url}/v1/forecasts/{first}"
    wait_until(lambda: httpx2.get(url).status_code == 410, seconds=10)
    assert post() != first


def test_old_results_that_the_database_does_not_know_are_removed(service: Service) -> None:
    """An earlier database or a restored backup leaves them."""
    folders = [result_dir(service.settings.artifacts, digit * 32) for digit in "de"]
    for folder, days in zip(folders, (31, 29), strict=True):
        folder.mkdir()
        then = time.time() - days * DAY_S
        os.utime(folder, (then, then))
    old, young = folders
    wait_until(lambda: not old.exists(), seconds=10)
    assert young.is_dir()


def test_audit_and_expired_ids_are_removed_and_the_rest_still_verifies(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'forecasts.sqlite'}"
    with closing(open_jobs(url)) as jobs:
        for number in range(3):
            jobs.enqueue(new_job(str(number)), limit=9)
            jobs.finish(str(number), "failed")
        assert jobs.expire(time.time() + 1) == ["0", "1", "2"]
        assert jobs.prune(time.time() - 60) == 0
        assert jobs.prune(time.time() + 60) == 9
        assert jobs.get("0") is None
        jobs.enqueue(new_job("3"), limit=9)
        entries = read_entries(url)
        assert [json.loads(entry.record)["event"] for entry in entries] == [
            "audit_pruned",
            "accepted",
        ]
        assert entries[0].sequence == 10
        assert list(verify_chain(entries, AUDIT_KEYS)) == []
        assert jobs.prune(time.time() + 60) == 2  # an unfinished forecast stays
        assert list(verify_chain(read_entries(url), AUDIT_KEYS)) == []
        assert [job.id for job in jobs.unfinished()] == ["3"]


def test_files_of_the_service_are_closed_to_other_users(service: Service) -> None:
    artifacts = service.settings.artifacts
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (artifacts, *artifacts.glob("*.sqlite*"), artifacts / "audit.key")
    }
    assert modes.pop("out") == 0o700
    assert set(modes) >= {"audit.key", "forecasts.sqlite", "forecasts.sqlite-wal"}
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("target", ["artifacts", "database"])
def test_place_that_others_can_write_to_is_refused_and_a_readable_one_is_closed(
    tmp_path: Path, target: str
) -> None:
    artifacts, database = tmp_path / "out", tmp_path / "elsewhere.sqlite"
    settings = ServiceSettings(
        bundle=tmp_path,
        store=tmp_path,
        artifacts=artifacts,
        database=f"sqlite:///{database}",
        demo=True,
    )
    artifacts.mkdir(mode=0o755)
    database.touch(mode=0o644)
    open_repository(settings).close()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (artifacts, database)] == [0o700, 0o600]
    path = artifacts if target == "artifacts" else database
    path.chmod(0o777)
    with pytest.raises(StorageError, match="only its owner can write to, got mode 0777"):
        open_repository(settings)


@pytest.mark.parametrize(
    "wrong", [{"keep_audit_days": 10}, {"keep_audit_days": 99, "keep_days": 0}]
)
def test_audit_is_kept_at_least_as_long_as_the_forecasts(
    tmp_path: Path, wrong: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="keep_audit_days: expected at least keep_days"):
        ServiceSettings.model_validate(
            {"bundle": tmp_path, "store": tmp_path, "demo": True} | wrong
        )

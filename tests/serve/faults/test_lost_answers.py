"""A forecast that was committed is not lost with the answer to its COMMIT, nor is its upload."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy.exc import OperationalError

from serve.artifacts import ORPHAN_AGE_SECONDS
from serve.client import Client
from serve.db.models import ForecastJob
from serve.db.repository import JobRepository
from tests.support.bids import path_of
from tests.support.service import (
    Service,
    assert_problem,
    run_service,
    trial_settings,
    wait_for_success,
    wait_until,
    write_trial_served,
)

UNLABELLED = "sub-03"
LOST = OperationalError("commit", {}, Exception("server closed the connection unexpectedly"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    write_trial_served(folder, unlabelled=UNLABELLED)
    return folder


@pytest.fixture(scope="module")
def service(root: Path) -> Iterator[Service]:
    with run_service(trial_settings(root, root / "out")) as service:
        yield service


@pytest.fixture(scope="module")
def images(root: Path) -> dict[str, bytes]:
    names = ("w000/flair", "w048/flair")
    paths = {name: path_of(root / "bids", UNLABELLED, *name.split("/")) for name in names}
    return {name: path.read_bytes() for name, path in paths.items()}


def post(
    service: Service, images: dict[str, bytes], samples: int = 2, **headers: str
) -> httpx2.Response:
    form = {"request": json.dumps({"samples": samples})}
    url = f"{service.url}/v1/forecasts"
    return httpx2.post(url, data=form, files=images, headers=headers, timeout=60)


def uploads(service: Service) -> set[str]:
    return {folder.name for folder in (service.settings.artifacts / "uploads").glob("*")}


def lose(monkeypatch: pytest.MonkeyPatch, *, committed: bool) -> None:
    """Lose the answer to the COMMIT of new jobs, which succeeds or not."""
    enqueue = JobRepository.enqueue

    def lost(self: JobRepository, *given: Any, **named: Any) -> ForecastJob:
        if committed:
            enqueue(self, *given, **named)
        raise LOST

    monkeypatch.setattr(JobRepository, "enqueue", lost)


def test_a_job_whose_commit_got_no_answer_is_accepted_with_its_upload(
    client: Client, service: Service, images: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        lose(patch, committed=True)
        response = post(service, images)
    assert response.status_code == 202, response.text
    wait_for_success(client, response.json()["id"])
    assert response.json()["id"] in uploads(service)


def test_a_request_can_be_repeated_if_the_database_cannot_be_asked(
    client: Client, service: Service, images: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, key = uploads(service), {"Idempotency-Key": "asked twice"}

    def unreachable(*_: object, **__: object) -> None:
        raise LOST

    with monkeypatch.context() as patch:
        lose(patch, committed=True)
        patch.setattr(JobRepository, "get", unreachable)
        service.budget = 0
        assert_problem(post(service, images, **key), 503)
    service.reset()
    (kept,) = uploads(service) - before
    response = post(service, images, **key)
    assert (response.status_code, response.json()["id"]) == (202, kept)
    wait_for_success(client, kept)
    assert uploads(service) - before == {kept}


def test_an_upload_whose_job_never_came_to_exist_is_removed_by_age(
    service: Service, images: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    before = uploads(service)
    with monkeypatch.context() as patch:
        lose(patch, committed=False)
        assert_problem(post(service, images), 503)
    (orphan,) = uploads(service) - before  # its COMMIT may have been on the way
    old = time.time() - ORPHAN_AGE_SECONDS - 60
    for folder in uploads(service):
        os.utime(service.settings.artifacts / "uploads" / folder, (old, old))
    with run_service(service.settings):
        wait_until(lambda: orphan not in uploads(service), seconds=20)
    assert uploads(service) == before


def test_the_upload_of_a_request_that_is_refused_is_removed_at_once(
    service: Service, images: dict[str, bytes]
) -> None:
    key = {"Idempotency-Key": "of another request"}
    assert post(service, images, **key).status_code == 202
    before = uploads(service)
    broken = {**images, "w048/flair": b"no image"}
    assert_problem(post(service, broken), 422, "w048/flair")
    assert_problem(post(service, images, samples=3, **key), 422, "Idempotency-Key")
    assert uploads(service) == before

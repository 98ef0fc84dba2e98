"""What disturbs the service while it runs; no accepted forecast is lost or changed by it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, update
from sqlalchemy.orm import Session
from tiny_forecast import write_bundle, write_store
from tiny_service import Service, finished, running, until

from lesioncast.training.bundle import load_bundle
from serve.client import Client
from serve.settings import Settings
from serve.tables import Part

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


def settings_in(root: Path, artifacts: Path, **given: object) -> Settings:
    chosen = {"bundle": root / "bundle"} | given
    return Settings(store=root / "store.zarr", artifacts=artifacts, demo=True, block=2, **chosen)  # type: ignore[arg-type]


@pytest.fixture
def settings(root: Path, tmp_path: Path) -> Settings:
    return settings_in(root, tmp_path)


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    with running(settings) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


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
    return client.ask("sub-02", samples=SAMPLES)


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
        place = (Part.job == job, Part.arm == lost.arm, Part.first == lost.first)
        session.execute(update(Part).where(*place).values(bundle="another"))
    engine.dispose()
    service.budget = BLOCKS
    assert client.result(finished(client, job)) == whole["bundle"]
    assert service.drawn.count(lost) == 2


def test_a_forecast_starts_again_where_the_bundle_is_exchanged(
    settings: Settings, root: Path, whole: dict[str, Any]
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
    settings: Settings, root: Path, whole: dict[str, Any]
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

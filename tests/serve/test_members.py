"""The service forecasts with all members of a bundle, as the Python API does."""

import pytest

import lesioncast
from lesioncast.forecasting.settings import ForecastSettings
from serve.client import Client
from serve.settings import ServiceSettings
from tests.support.bids import ARMS
from tests.support.forecast import write_bundle, write_combined_bundle, write_store
from tests.support.service import run_service, wait_for_success

SUBJECT, SAMPLES, SEED = "sub-02", 8, 5


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ServiceSettings:
    folder = tmp_path_factory.mktemp("members")
    write_store(folder / "store.zarr", folder / "bids", test=2)
    for seed in (0, 1):
        write_bundle(folder / f"seed{seed}", lesion_loads=(1, 20), seed=seed)
    write_combined_bundle(folder / "both", folder / "seed0", folder / "seed1")
    return ServiceSettings(
        bundle=folder / "both", store=folder / "store.zarr", artifacts=folder / "out", demo=True
    )


def test_the_service_gives_the_forecast_of_the_api(settings: ServiceSettings) -> None:
    with run_service(settings) as service, Client(service.url) as client:
        job = client.create_forecast(SUBJECT, samples=SAMPLES, seed=SEED)
        result = client.result(wait_for_success(client, job))
    expected = lesioncast.load_bundle(settings.bundle).forecast_case(
        settings.store,
        SUBJECT,
        settings=ForecastSettings(samples=SAMPLES, reference_arm=result["reference_arm"]),
        seed=SEED,
    )
    for arm in ARMS:
        found, stated = result["arms"][arm], expected.summary.arms[arm]
        assert found["count"]["mean"] == stated.count.mean
        assert found["volume_mm3"]["mean"] == stated.volume_mm3.mean
        assert found["p_active"]["value"] == stated.p_active.value
        assert found["members"]["count"] == 2
        assert tuple(found["members"]["p_active"]["values"]) == stated.members.p_active.values
        assert found["members"]["expected_count"]["sd"] == stated.members.expected_count.sd
    assert result["notes"][-1] == expected.summary.notes[-1]
    assert "2 models of different training seeds" in result["notes"][-1]

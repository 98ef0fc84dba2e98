"""Forecasts of networks on a base map: the map needs no samples and agrees with all numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from lesioncast.api import ForecastModel, load_bundle
from lesioncast.forecasting.ensemble import Ensemble
from lesioncast.forecasting.output.bids import read_maps, write_forecast_root
from lesioncast.forecasting.output.figure import _colour_scale_maximum
from lesioncast.forecasting.output.summary import arm_summary, map_kind
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    plan_forecast,
    run_provenance,
    stored_flair,
    write_forecasts,
)
from lesioncast.forecasting.runtime import (
    build_forecast_sampler,
    forecast_sampler,
    maps_of_requests,
    store_reader,
)
from lesioncast.forecasting.sampling import EnsembleRequest, ModelInput, ensembles
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.forecasting.view.build import ViewPatient, finished_view
from lesioncast.forecasting.view.encode import decode_view
from lesioncast.forecasting.view.kept_samples import KeptSamples
from lesioncast.forecasting.view.numbers import finished_numbers
from lesioncast.imaging.regions import lesions_in_regions
from lesioncast.jobs.forecast import draw_in_process
from storage import Store
from tests.forecasting.test_output import ramp_view
from tests.support.bids import ARMS
from tests.support.forecast import SPEC, write_bundle, write_store
from tests.training.base_map_runs import write_base_map_bundle

VOXEL_MM3 = float(np.prod(SPEC.spacing))
SAMPLES = 96


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("trial")
    return write_store(folder / "store.zarr", folder / "bids", test=4, train=40)


@pytest.fixture(scope="module")
def model(store: Store, tmp_path_factory: pytest.TempPathFactory) -> ForecastModel:
    path = tmp_path_factory.mktemp("model") / "bundle"
    write_base_map_bundle(path, store)
    return load_bundle(path)


@pytest.fixture(scope="module")
def drawn(model: ForecastModel, store: Store) -> Ensemble:
    """Draw an ensemble of many samples of one case under one arm, one request in two batches."""
    sampler = forecast_sampler(model.bundle, store, device="cpu")
    settings = ForecastSettings(samples=SAMPLES, reference_arm=ARMS[0])
    plan = plan_forecast(store, [store.cases[1]], settings=settings, seed=0, arms=ARMS[:1])
    (ensemble,) = ensembles(plan.requests, plan.seeds, map(sampler, plan.batches(SAMPLES // 2)))
    return ensemble


def test_expected_volume_and_p_active_are_those_of_the_map(
    model: ForecastModel, store: Store, drawn: Ensemble
) -> None:
    """All three are sums over the same probabilities of the lesion load classes."""
    networks = model.bundle.model
    inputs = store_reader(store, model.bundle.config.model)(ModelInput(1))
    logits = networks.lesion_load_logits(_encode(model, inputs), 0)
    assert logits is not None
    assert networks.base_map is not None
    classes = logits.double().softmax(0)[1:]
    voxels = float(classes @ networks.base_map.voxels.double().mean(1))
    summary = arm_summary(drawn, drawn, received=True, opening=False, voxel_mm3=VOXEL_MM3)
    assert map_kind(drawn) == "closed form"
    assert summary.p_active.value == pytest.approx(float(classes.sum()), rel=1e-4)
    assert summary.volume_mm3.expected == pytest.approx(voxels * VOXEL_MM3, rel=1e-2)
    assert drawn.probability.sum() * VOXEL_MM3 == pytest.approx(
        summary.volume_mm3.expected, rel=1e-4
    )
    opened = arm_summary(drawn, drawn, received=True, opening=True, voxel_mm3=VOXEL_MM3)
    assert opened.volume_mm3.expected is None


def _encode(model: ForecastModel, inputs: object):  # type: ignore[no-untyped-def]
    from lesioncast.forecasting.encoding import PatientEncoder

    (encoding,) = PatientEncoder(model.bundle, device="cpu")(inputs)  # type: ignore[arg-type]
    return encoding


def test_samples_agree_with_the_map_in_volume_and_in_regions(drawn: Ensemble) -> None:
    """No regional risk exceeds the lesion voxels that the map expects there (Markov)."""
    volume = drawn.volume / VOXEL_MM3
    error = volume.std(ddof=1) / np.sqrt(SAMPLES)
    assert volume.mean() == pytest.approx(float(drawn.probability.sum()), abs=4 * error + 0.2)
    assert drawn.sample_share.sum() == pytest.approx(volume.mean(), rel=1e-4)
    left = np.zeros(drawn.probability.shape, bool)
    left[..., :8] = True
    for region in (left, ~left):
        expected, sampled = (
            float(each[region].sum()) for each in (drawn.probability, drawn.sample_share)
        )
        assert sampled == pytest.approx(expected, abs=4 * error + 0.2)


def test_no_regional_risk_exceeds_p_active_or_the_expected_voxels_of_the_map(
    model: ForecastModel, store: Store, drawn: Ensemble
) -> None:
    sampler = forecast_sampler(model.bundle, store, device="cpu")
    settings = ForecastSettings(samples=SAMPLES, reference_arm=ARMS[0])
    plan = plan_forecast(store, [store.cases[1]], settings=settings, seed=0, arms=ARMS[:1])
    (batch,) = plan.batches(SAMPLES)
    masks = sampler(batch).masks()
    labels = np.full(masks.shape[1:], 2, np.int16)
    labels[..., 8:] = 3
    risks = lesions_in_regions(masks, labels).mean(axis=0)
    active = (drawn.plain > 0).mean()
    for risk, region in zip(risks, (2, 3), strict=True):
        assert 0 < risk <= active
        assert risk <= drawn.probability[labels == region].sum() + 3 * np.sqrt(0.25 / SAMPLES)


def test_a_local_job_has_the_same_map(model: ForecastModel, store: Store) -> None:
    settings = ForecastSettings(samples=2, reference_arm=ARMS[0])
    drawn = draw_in_process([store.cases[1]], store, model.bundle.path, settings=settings, seed=0)
    maps = {request: found for batch in drawn for request, found in batch.maps.items()}
    expected = maps_of_requests(model.bundle, store, list(maps))
    assert len(maps) == len(ARMS)
    for request, found in maps.items():
        assert np.array_equal(found, expected[request])


def test_the_map_has_no_monte_carlo_error_and_is_the_same_for_job_api_and_service(
    model: ForecastModel, store: Store, drawn: Ensemble, tmp_path: Path
) -> None:
    settings = ForecastSettings(samples=2, reference_arm=ARMS[0], slices=1)
    found = model.forecast_case(store, "sub-02", settings=settings, seed=3)
    assert found.summary.map == "closed form"
    plan = plan_forecast(store, [store.case("sub-02")], settings=settings, seed=3)
    sampler = build_forecast_sampler(model.bundle.path, store.path, device="cpu")
    run = ForecastRun(
        settings=settings,
        provenance=run_provenance(model.bundle, store, seed=3, sessions=()),
        out=tmp_path,
        background=stored_flair(store),
    )
    write_forecast_root(tmp_path, source=tmp_path)
    batches = map(sampler, plan.batches(3))
    (summary,) = write_forecasts(store, [store.case("sub-02")], batches, run)
    assert summary == found.summary
    maps = {each.sidecar["Arm"]: each for each in read_maps(tmp_path, "sub-02")}
    for arm in ARMS:
        assert "computed without sampling" in maps[arm].sidecar["Description"]
        assert np.array_equal(maps[arm].image.get_fdata(), found.arms[arm].probability.get_fdata())
        assert not np.array_equal(
            found.arms[arm].sample_share.get_fdata(), found.arms[arm].probability.get_fdata()
        )
    numbers = finished_numbers(summary, KeptSamples({}, {}), errors={})
    patient = ViewPatient(store.case("sub-02"), store, truth={})
    page, _ = decode_view(finished_view(patient, summary, numbers, {}))
    assert page.map == "closed form"
    assert page.arms[0].volume_mm3 == summary.arms[ARMS[0]].volume_mm3.expected
    service = maps_of_requests(model.bundle, store, plan.requests)
    assert np.array_equal(service[EnsembleRequest(1, 0)], drawn.probability)  # other samples
    assert json.loads((tmp_path / "sub-02/sub-02_forecast.json").read_text())["map"]


def test_networks_without_a_base_map_keep_the_share_of_samples(
    store: Store, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "bundle", lesion_loads=(1, 4, 9))
    plain = load_bundle(tmp_path / "bundle")
    settings = ForecastSettings(samples=2, reference_arm=ARMS[0])
    found = plain.forecast_case(store, "sub-02", settings=settings)
    assert found.summary.map == "share of samples"
    assert found.summary.arms[ARMS[0]].volume_mm3.expected is None
    assert maps_of_requests(plain.bundle, store, [EnsembleRequest(1, 0)]) == {}
    for arm in ARMS:
        share, probability = found.arms[arm].sample_share, found.arms[arm].probability
        assert np.array_equal(share.get_fdata(), probability.get_fdata())


@pytest.mark.parametrize(
    ("highest", "kind", "scale"),
    [
        (0.004, "closed form", 0.01),
        (0.03, "closed form", 0.05),
        (0.07, "closed form", 0.1),
        (0.31, "closed form", 0.4),
        (0.004, "share of samples", 0.2),
        (0.31, "share of samples", 0.4),
    ],
)
def test_colours_reach_the_highest_probability(highest: float, kind: str, scale: float) -> None:
    view = ramp_view(mass={4: highest})
    assert _colour_scale_maximum(view, [4], kind) == pytest.approx(scale)  # type: ignore[arg-type]

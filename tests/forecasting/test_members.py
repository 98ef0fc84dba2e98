"""A bundle of several members forecasts by their mixture, the same in job and API."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lesioncast.api import ForecastModel, load_bundle
from lesioncast.bundle import bundle as bundles
from lesioncast.bundle.bundle import Bundle
from lesioncast.forecasting.encoding import PatientEncoder
from lesioncast.forecasting.members import MixedLoads, draw_members
from lesioncast.forecasting.output.bids import forecast_path, summary_path
from lesioncast.forecasting.output.summary import read_summary
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    plan_forecast,
    run_provenance,
    stored_flair,
    write_forecasts,
)
from lesioncast.forecasting.runtime import (
    bundle_sampler,
    forecast_sampler,
    make_expectation_predictor,
    maps_of_requests,
    store_reader,
)
from lesioncast.forecasting.sampling import EnsembleRequest, ModelInput, Sample
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.seeds import load_quantile
from storage import Store
from tests.support.bids import ARMS
from tests.support.forecast import write_bundle, write_combined_bundle, write_store
from tests.training.base_map_runs import write_base_map_bundle

CASE, ARM = 1, 0
SEEDS = range(2000)
SETTINGS = ForecastSettings(samples=6, batch_size=4, reference_arm=ARMS[0])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("trial")
    return write_store(folder / "store.zarr", folder / "bids", test=4, train=20)


@pytest.fixture(scope="module")
def folder(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write bundles of two seeds, on a base map, and one of both members."""
    folder = tmp_path_factory.mktemp("bundles")
    for seed in (0, 1):
        write_base_map_bundle(folder / f"seed{seed}" / "bundle", store, seed=seed, noise=0.05)
    write_combined_bundle(folder / "both", *(folder / f"seed{seed}" / "bundle" for seed in (0, 1)))
    return folder


@pytest.fixture(scope="module")
def both(folder: Path) -> Bundle:
    return bundles.load_bundle(folder / "both")


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[Bundle]:
    """Return the bundles of one member each."""
    return [bundles.load_bundle(folder / f"seed{seed}" / "bundle") for seed in (0, 1)]


def test_probabilities_are_means_of_those_of_the_members(
    both: Bundle, alone: list[Bundle], store: Store
) -> None:
    inputs = store_reader(store, both.config.model)(ModelInput(CASE))
    mixed, first, second = (
        make_expectation_predictor(one.priors, one.config.model, device="cpu")(inputs)
        for one in (both, *alone)
    )
    for found, one, other in zip(mixed, first, second, strict=True):
        assert one.members == other.members == ()
        assert abs(one.p_active - other.p_active) > 0.002
        assert found.p_active == pytest.approx((one.p_active + other.p_active) / 2, rel=1e-12)
        assert found.lesions == pytest.approx((one.lesions + other.lesions) / 2, rel=1e-12)
        # The variance of a mixture is the mean variance plus that of the means.
        within = (one.log_sd**2 + other.log_sd**2) / 2
        between = (one.log_lesions - other.log_lesions) ** 2 / 4
        assert found.log_sd**2 == pytest.approx(within + between, rel=1e-9)
        assert np.allclose(found.load_edges, np.mean([one.load_edges, other.load_edges], axis=0))
        assert [member.p_active for member in found.members] == [one.p_active, other.p_active]
        assert [member.lesions for member in found.members] == [one.lesions, other.lesions]


def test_the_map_is_the_mean_of_the_maps(both: Bundle, alone: list[Bundle], store: Store) -> None:
    request = EnsembleRequest(CASE, ARM)
    mixed, first, second = (
        maps_of_requests(one, store, [request])[request] for one in (both, *alone)
    )
    assert np.abs(first - second).max() > 1e-4
    assert np.allclose(mixed, (first + second) / 2, rtol=1e-5)
    inputs = store_reader(store, both.config.model)(ModelInput(CASE))
    densities = [PatientEncoder(one, device="cpu").density(inputs) for one in (both, *alone)]
    assert np.allclose(densities[0], (densities[1] + densities[2]) / 2)


def test_seeds_draw_classes_and_members_of_the_mixture(both: Bundle, store: Store) -> None:
    """Each pair of class and member has the probability p_m(class) / M."""
    inputs = store_reader(store, both.config.model)(ModelInput(CASE))
    models = [member.model for member in both.members]
    # Members that agree on no class: the first has almost always lesions, the second seldom.
    models[0].control.lesion_load_prior.arm_offset += 2
    models[1].control.lesion_load_prior.arm_offset -= 2
    patient = PatientEncoder(both, device="cpu")(inputs)
    loads = MixedLoads.of(models, patient, ARM)
    draws = draw_members(models, patient, ARM, SEEDS)
    models[0].control.lesion_load_prior.arm_offset -= 2
    models[1].control.lesion_load_prior.arm_offset += 2
    share = np.zeros(loads.by_member.shape)
    for draw in draws:
        share[draw.member, draw.condition.lesion_load] += 1 / len(SEEDS)
    expected = loads.by_member.numpy() / 2
    error = np.sqrt(expected * (1 - expected) / len(SEEDS))
    assert (np.abs(share - expected) < 4 * error).all()
    assert (np.abs(expected[0] - expected[1]) > 20 * error.max()).any()
    # The class follows from the seed's quantile and the mean probabilities alone.
    edges = loads.by_member.mean(0).cumsum(0)[:-1].numpy()
    classes = np.searchsorted(edges, [load_quantile(seed) for seed in SEEDS], side="right")
    assert [draw.condition.lesion_load for draw in draws] == classes.tolist()


def test_a_bundle_of_one_member_draws_what_its_networks_draw(
    alone: list[Bundle], store: Store
) -> None:
    bundle = alone[0]
    inputs = store_reader(store, bundle.config.model)(ModelInput(CASE))
    (patient,) = encodings = PatientEncoder(bundle, device="cpu")(inputs)
    draws = draw_members([bundle.model], encodings, ARM, SEEDS)
    assert [draw.member for draw in draws] == [0] * len(SEEDS)
    conditions = bundle.model.sample_conditions(patient, ARM, SEEDS)
    assert [(each.lesion_load, each.voxels) for _, each in draws] == [
        (each.lesion_load, each.voxels) for each in conditions
    ]


def test_without_lesion_loads_members_draw_equally_many_samples(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=2)
    for seed in (0, 1):
        write_bundle(tmp_path / f"seed{seed}", seed=seed)
    parents = [bundles.load_bundle(tmp_path / f"seed{seed}") for seed in (0, 1)]
    models = [parent.model for parent in parents]
    inputs = store_reader(store, parents[0].config.model)(ModelInput(CASE))
    patient = tuple(PatientEncoder(one, device="cpu")(inputs)[0] for one in parents)
    drawn = [draw.member for draw in draw_members(models, patient, ARM, SEEDS)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(SEEDS)))


def test_a_sample_is_that_of_its_seed_in_every_batch(both: Bundle, store: Store) -> None:
    sampler = bundle_sampler(both, store, device="cpu")
    request = EnsembleRequest(CASE, ARM)
    samples = [Sample(request, seed) for seed in range(12)]
    together = sampler(tuple(samples)).masks()
    apart = [sampler((sample,)).masks()[0] for sample in reversed(samples)]
    assert np.array_equal(together, apart[::-1])
    assert len({mask.tobytes() for mask in together}) > 3


def test_job_and_api_give_the_same_forecast_with_the_spread_between_members(
    folder: Path, both: Bundle, alone: list[Bundle], store: Store, tmp_path: Path
) -> None:
    model: ForecastModel = load_bundle(folder / "both")
    subject = store.cases[CASE].subject
    forecast = model.forecast_case(store, subject, settings=SETTINGS, seed=7)
    cases = [store.case(subject)]
    run = ForecastRun(
        settings=SETTINGS,
        provenance=run_provenance(both, store, seed=7, sessions=()),
        out=tmp_path,
        background=stored_flair(store),
    )
    batches = plan_forecast(store, cases, settings=SETTINGS, seed=7).batches(3)
    drawn = map(forecast_sampler(both, store, device="cpu"), batches)
    (written,) = write_forecasts(store, cases, drawn, run)
    assert forecast.summary == written == read_summary(summary_path(tmp_path, subject))
    for arm, found in forecast.arms.items():
        image = nib.load(forecast_path(tmp_path, subject, arm))
        assert np.array_equal(found.probability.get_fdata(), image.get_fdata())
        assert found.members == written.arms[arm].members
        values = found.members.p_active.values
        assert found.members.count == len(values) == 2
        assert found.p_active == pytest.approx(np.mean(values))
        assert found.members.p_active.sd == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
        assert found.expected_count == pytest.approx(np.mean(found.members.expected_count.values))
    assert [note for note in written.notes if "2 models of different training seeds" in note]
    one = ForecastModel(alone[0], device="cpu").forecast_case(
        store, subject, settings=replace(SETTINGS, samples=2), seed=7
    )
    assert {arm.members for arm in one.arms.values()} == {None}
    assert not [note for note in one.summary.notes if "training seeds" in note]

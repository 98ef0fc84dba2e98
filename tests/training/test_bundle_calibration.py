"""The calibration of a bundle is that of the forecasts which it states, for each set of images."""

from pathlib import Path

import numpy as np
import pytest

from lesioncast.bundle.bundle import BundlePrior, load_bundle_prior
from lesioncast.calibration.conformal import LogCountForecast
from lesioncast.calibration.fit import calibrate
from lesioncast.calibration.recalibration import finite_log_odds
from lesioncast.forecasting.runtime import expected_outcomes_of
from lesioncast.forecasting.sampling import ModelInput
from lesioncast.imaging.channels import BASELINE
from lesioncast.priors.input_patterns import PATTERNS, pattern_name
from lesioncast.training.lesion_load_prior.bundle_calibration import calibrate_on_split
from storage import Store
from tests.support.forecast import write_bundle, write_store

CASES = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("calibration")
    return write_store(folder / "store.zarr", folder / "bids", test=CASES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> BundlePrior:
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    write_bundle(path, lesion_loads=(1, 4), flair_reader=True)
    return load_bundle_prior(path)


@pytest.mark.parametrize(
    ("sessions", "pattern"),
    [(None, "w000 and w048: all kinds of image"), ((BASELINE,), "w000: all kinds of image")],
)
def test_it_is_learned_on_what_a_forecast_states(
    store: Store, bundle: BundlePrior, sessions: tuple[str, ...] | None, pattern: str
) -> None:
    learned = calibrate_on_split(bundle.priors, store, bundle.config.model, split="test")
    stated = []
    for case in store.cases:
        request = ModelInput(case.index, sessions)
        stated.append(expected_outcomes_of(bundle, store, request)[request][case.arm_index])
    assert {one.pattern for one in stated} == {pattern}
    expected = calibrate(
        np.array([float(case.index % 2) for case in store.cases]),
        LogCountForecast(
            np.array([one.log_lesions for one in stated]), np.array([one.log_sd for one in stated])
        ),
        finite_log_odds(np.array([one.p_active for one in stated])),
    )
    found = learned.of_pattern(pattern)
    assert (found.cases, found.positives) == (CASES, CASES // 2)
    for quantile, of_stated in zip(found.quantiles, expected.quantiles, strict=True):
        assert (quantile.level, quantile.rank) == (of_stated.level, of_stated.rank)
        assert quantile.score == pytest.approx(of_stated.score, abs=0.02)
    assert found.platt_scaling.slope == pytest.approx(expected.platt_scaling.slope, abs=0.02)


def test_it_names_its_cohort_and_has_one_entry_for_each_set_of_images(
    store: Store, bundle: BundlePrior
) -> None:
    learned = calibrate_on_split(
        bundle.priors, store, bundle.config.model, split="test", parent="d" * 64
    )
    assert learned.cohort.name == f"{CASES} test cases of A made-up trial"
    assert set(learned.cohort.arms.values()) == {CASES // 3}
    assert learned.cohort.cases == CASES == len(learned.cohort.case_digests)
    assert learned.parent == "d" * 64
    # No image of w000 shows new lesions, so hiding T2 lesions leaves FLAIR alone.
    possible = {*map(pattern_name, range(PATTERNS))} - {"w000: no T2 lesions, no gadolinium"}
    assert {one.pattern for one in learned.patterns} == possible
    assert learned.of_pattern("an unknown set of images") is None


def test_levels_that_need_more_cases_are_left_out(bundle: BundlePrior, tmp_path: Path) -> None:
    small = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=5)
    learned = calibrate_on_split(bundle.priors, small, bundle.config.model, split=None)
    assert {one.calibration.cases for one in learned.patterns} == {5}
    assert {one.level for p in learned.patterns for one in p.calibration.quantiles} == {0.8}


def test_without_a_prior_or_cases_there_is_none(store: Store, bundle: BundlePrior) -> None:
    model = bundle.config.model
    assert calibrate_on_split((), store, model, split="test") is None
    assert calibrate_on_split(bundle.priors, store, model, split="val") is None


def test_patterns_have_names_of_their_own() -> None:
    assert len({pattern_name(pattern) for pattern in range(PATTERNS)}) == PATTERNS

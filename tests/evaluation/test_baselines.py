"""Baselines know the training cases only, and each knows no more than it says."""

from dataclasses import dataclass

import numpy as np
import pytest

from lesioncast.errors import BaselineError
from lesioncast.evaluation.baselines.baselines import (
    arm_statistics,
    fit_regression_baseline,
    lookup_by_arm,
    monte_carlo,
)
from lesioncast.evaluation.features.image_features import (
    IMAGE_FEATURES,
    image_features,
    measure_case,
)
from lesioncast.evaluation.metrics.scores import average_precision, roc_auc

ARMS = ("placebo", "avonex", "ocrelizumab")
SPACING = (3.0, 1.0, 1.0)


@dataclass(frozen=True)
class Voxels:
    flair: np.ndarray
    masks: np.ndarray
    present: np.ndarray
    parcellation: np.ndarray


def voxels() -> Voxels:
    rng = np.random.default_rng(0)
    flair = np.full((3, 4, 12, 12), -1.0, np.float16)
    flair[:, :, 3:9, 3:9] = rng.normal(0.4, 0.05, (4, 6, 6)).astype(np.float16)
    labels = np.full((4, 12, 12), 2, np.int16)
    labels[:, :, 6:] = 42
    return Voxels(flair, np.zeros((3, 3, 4, 12, 12), np.uint8), np.ones((3, 4), bool), labels)


def scalar(found: np.ndarray, name: str) -> float:
    return float(found[IMAGE_FEATURES.index(name)])


def test_arm_statistics_by_hand() -> None:
    found = arm_statistics(np.array([0, 0, 1]), np.array([0.0, 4.0, 0.0]), arms=3)
    assert found.cases.tolist() == [2, 1, 0]
    assert found.activity == pytest.approx([0.5, 0.0, np.nan], nan_ok=True)
    assert found.mean_count == pytest.approx([2.0, 0.0, np.nan], nan_ok=True)
    assert found.mean_log_count == pytest.approx([np.log(5) / 2, 0.0, np.nan], nan_ok=True)


def test_an_arm_without_training_cases_is_refused_by_name() -> None:
    with pytest.raises(BaselineError, match="ocrelizumab"):
        lookup_by_arm(np.array([0.5, 0.2, np.nan]), np.array([0, 2]), ARMS)


def test_the_monte_carlo_baseline_is_chance_within_an_arm() -> None:
    """The paper's: AUC near .5 and AP near the prevalence, in the mean of 100 runs."""
    active = np.random.default_rng(1).random(300) < 0.4
    runs = monte_carlo(np.full(300, 0.4), runs=100, seed=0)
    assert set(np.unique(runs)) == {0.0, 1.0}
    assert runs.mean() == pytest.approx(0.4, abs=0.01)
    assert np.mean([roc_auc(active, run) for run in runs]) == pytest.approx(0.5, abs=0.015)
    prevalence = active.mean()
    found = np.mean([average_precision(active, run) for run in runs])
    assert found == pytest.approx(prevalence, abs=0.015)


def test_the_scalar_model_finds_a_burden_that_drives_activity() -> None:
    rng = np.random.default_rng(2)
    scalars, arm = rng.normal(size=(900, 3)), rng.integers(0, 3, 900)
    count = rng.poisson(np.exp(1.2 * scalars[:, 0] - arm)).astype(float)
    model = fit_regression_baseline(scalars[:600], arm[:600], count[:600], arms=3)
    test = slice(600, 900)
    chance = model.probability(scalars[test], arm[test])
    assert ((chance >= 0) & (chance <= 1)).all()
    assert roc_auc(count[test] > 0, chance) > 0.8
    errors = (np.log1p(model.count(scalars[test], arm[test])) - np.log1p(count[test])) ** 2
    mean_log = np.log1p(count[:600]).mean()
    assert errors.mean() < 0.6 * np.mean((np.log1p(count[test]) - mean_log) ** 2)


def test_the_scalar_model_takes_absent_scalars_and_arms_without_cases() -> None:
    rng = np.random.default_rng(3)
    scalars = rng.normal(size=(80, 2))
    scalars[::3, 0] = np.nan
    scalars[:, 1] = np.nan
    arm = rng.integers(0, 2, 80)
    model = fit_regression_baseline(scalars, arm, rng.poisson(1, 80).astype(float), arms=3)
    found = model.probability(np.array([[np.nan, 1.0]]), np.array([2]))
    assert np.isfinite(found).all()
    assert np.isfinite(model.count(np.array([[np.nan, 1.0]]), np.array([2]))).all()


@pytest.mark.parametrize(("count", "chance"), [(0.0, 0.0), (2.0, 1.0)])
def test_training_cases_of_one_class_predict_that_class(count: float, chance: float) -> None:
    scalars, arm = np.zeros((6, 1)), np.zeros(6, int)
    model = fit_regression_baseline(scalars, arm, np.full(6, count), arms=1)
    assert model.probability(scalars, arm) == pytest.approx(chance)
    assert model.count(scalars, arm) == pytest.approx(count)


def test_scalars_are_logs_of_volumes_and_counts() -> None:
    case = voxels()
    case.masks[1, 1, 1, 4, 4] = case.masks[1, 1, 1, 8, 8] = 1
    case.masks[1, 2, 1, 4:6, 4] = 1
    found = image_features(case, SPACING)
    assert scalar(found, "gad_volume_w048") == pytest.approx(np.log1p(6))
    assert scalar(found, "gad_count_w048") == pytest.approx(np.log1p(2))
    assert scalar(found, "net2_volume_w048") == pytest.approx(np.log1p(6))
    assert scalar(found, "gad_count_w000") == 0


def test_the_flair_gain_sees_a_new_lesion_and_no_change_of_scale() -> None:
    case = voxels()
    case.flair[1] += np.random.default_rng(5).normal(0, 0.01, case.flair[1].shape)
    quiet = scalar(image_features(case, SPACING), "flair_gain")
    case.flair[1] += 0.1
    assert scalar(image_features(case, SPACING), "flair_gain") == pytest.approx(quiet, abs=0.4)
    case.flair[1, 1, 4:6, 4:6] += 0.4
    assert scalar(image_features(case, SPACING), "flair_gain") > quiet + 2


def test_an_absent_channel_is_not_a_zero() -> None:
    case = voxels()
    case.present[1, 2] = case.present[0, 0] = False
    found = image_features(case, SPACING)
    assert np.isnan(scalar(found, "gad_volume_w048"))
    assert np.isnan(scalar(found, "flair_gain"))
    assert scalar(found, "gad_volume_w000") == 0


def test_a_case_shows_where_its_lesions_lie_and_how_many_came_before() -> None:
    case = voxels()
    case.masks[2, 2, 1, 4:6, 8] = case.masks[1, 2, 1, 4, 4] = case.masks[1, 2, 3, 9, 9] = 1
    found = measure_case(0, case, SPACING)
    assert found.regions.tolist() == [False, True]  # voxels of the cortex alone
    assert found.net2_count_w048 == 2
    case.parcellation[:] = 0
    case.present[1, 3] = False
    found = measure_case(0, case, SPACING)
    assert found.regions is None
    assert found.net2_count_w048 is None


def test_scalars_know_nothing_of_week_96() -> None:
    case = voxels()
    before = image_features(case, SPACING)
    case.masks[2] = 1
    case.flair[2] = 0
    assert np.array_equal(image_features(case, SPACING), before)
    assert measure_case(0, case, SPACING).outcome.plain == 1
    assert measure_case(0, case, SPACING).regions.tolist() == [True, True]
    case.present[2, 3] = False
    assert measure_case(0, case, SPACING).outcome is None

"""Baselines are fitted on training cases only, and image features do not read w096."""

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
from lesioncast.evaluation.features.image_features import measure_case
from lesioncast.evaluation.metrics.scores import average_precision, roc_auc
from lesioncast.imaging.features.image_features import IMAGE_FEATURES, image_features

ARMS = ("placebo", "avonex", "ocrelizumab")
SPACING = (3.0, 1.0, 1.0)


@dataclass(frozen=True)
class CaseArrays:
    """Arrays of one case, as a store gives them."""

    flair: np.ndarray
    masks: np.ndarray
    present: np.ndarray
    parcellation: np.ndarray


def case_arrays() -> CaseArrays:
    """Return a case without lesions: white matter in front, cortex behind, air around a head."""
    rng = np.random.default_rng(0)
    flair = np.full((3, 4, 12, 12), -1.0, np.float16)
    flair[:, :, 3:9, 3:9] = rng.normal(0.4, 0.05, (4, 6, 6)).astype(np.float16)
    labels = np.full((4, 12, 12), 2, np.int16)
    labels[:, :, 6:] = 42
    return CaseArrays(flair, np.zeros((3, 3, 4, 12, 12), np.uint8), np.ones((3, 4), bool), labels)


def feature(values: np.ndarray, name: str) -> float:
    """Return the image feature with this name."""
    return float(values[IMAGE_FEATURES.index(name)])


def test_arm_statistics_by_hand() -> None:
    statistics = arm_statistics(np.array([0, 0, 1]), np.array([0.0, 4.0, 0.0]), arms=3)
    assert statistics.cases.tolist() == [2, 1, 0]
    assert statistics.activity == pytest.approx([0.5, 0.0, np.nan], nan_ok=True)
    assert statistics.mean_count == pytest.approx([2.0, 0.0, np.nan], nan_ok=True)
    assert statistics.mean_log_count == pytest.approx([np.log(5) / 2, 0.0, np.nan], nan_ok=True)


def test_an_arm_without_training_cases_raises_and_is_named() -> None:
    with pytest.raises(BaselineError, match="ocrelizumab"):
        lookup_by_arm(np.array([0.5, 0.2, np.nan]), np.array([0, 2]), ARMS)


def test_the_monte_carlo_baseline_is_chance_within_an_arm() -> None:
    """As in the paper, the mean AUC of 100 runs is near 0.5 and the mean AP near the prevalence."""
    active = np.random.default_rng(1).random(300) < 0.4
    runs = monte_carlo(np.full(300, 0.4), runs=100, seed=0)
    assert set(np.unique(runs)) == {0.0, 1.0}
    assert runs.mean() == pytest.approx(0.4, abs=0.01)
    assert np.mean([roc_auc(active, run) for run in runs]) == pytest.approx(0.5, abs=0.015)
    prevalence = active.mean()
    mean_ap = np.mean([average_precision(active, run) for run in runs])
    assert mean_ap == pytest.approx(prevalence, abs=0.015)


def test_the_regression_finds_a_feature_that_determines_activity() -> None:
    rng = np.random.default_rng(2)
    features, arm = rng.normal(size=(900, 3)), rng.integers(0, 3, 900)
    count = rng.poisson(np.exp(1.2 * features[:, 0] - arm)).astype(float)
    model = fit_regression_baseline(features[:600], arm[:600], count[:600], arms=3)
    test = slice(600, 900)
    probability = model.probability(features[test], arm[test])
    assert ((probability >= 0) & (probability <= 1)).all()
    assert roc_auc(count[test] > 0, probability) > 0.8
    errors = (np.log1p(model.count(features[test], arm[test])) - np.log1p(count[test])) ** 2
    mean_log = np.log1p(count[:600]).mean()
    assert errors.mean() < 0.6 * np.mean((np.log1p(count[test]) - mean_log) ** 2)


def test_the_regression_accepts_missing_features_and_arms_without_cases() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(80, 2))
    features[::3, 0] = np.nan
    features[:, 1] = np.nan
    arm = rng.integers(0, 2, 80)
    model = fit_regression_baseline(features, arm, rng.poisson(1, 80).astype(float), arms=3)
    probability = model.probability(np.array([[np.nan, 1.0]]), np.array([2]))
    assert np.isfinite(probability).all()
    assert np.isfinite(model.count(np.array([[np.nan, 1.0]]), np.array([2]))).all()


@pytest.mark.parametrize(("count", "probability"), [(0.0, 0.0), (2.0, 1.0)])
def test_training_cases_of_one_class_predict_that_class(count: float, probability: float) -> None:
    features, arm = np.zeros((6, 1)), np.zeros(6, int)
    model = fit_regression_baseline(features, arm, np.full(6, count), arms=1)
    assert model.probability(features, arm) == pytest.approx(probability)
    assert model.count(features, arm) == pytest.approx(count)


def test_image_features_are_logs_of_volumes_and_counts() -> None:
    case = case_arrays()
    case.masks[1, 1, 1, 4, 4] = case.masks[1, 1, 1, 8, 8] = 1
    case.masks[1, 2, 1, 4:6, 4] = 1
    values = image_features(case, SPACING)
    assert feature(values, "gad_volume_w048") == pytest.approx(np.log1p(6))
    assert feature(values, "gad_count_w048") == pytest.approx(np.log1p(2))
    assert feature(values, "net2_volume_w048") == pytest.approx(np.log1p(6))
    assert feature(values, "gad_count_w000") == 0


def test_the_flair_gain_rises_with_a_new_lesion_and_ignores_an_offset() -> None:
    case = case_arrays()
    case.flair[1] += np.random.default_rng(5).normal(0, 0.01, case.flair[1].shape)
    quiet = feature(image_features(case, SPACING), "flair_gain")
    case.flair[1] += 0.1
    assert feature(image_features(case, SPACING), "flair_gain") == pytest.approx(quiet, abs=0.4)
    case.flair[1, 1, 4:6, 4:6] += 0.4
    assert feature(image_features(case, SPACING), "flair_gain") > quiet + 2


def test_a_feature_of_a_missing_channel_is_nan() -> None:
    case = case_arrays()
    case.present[1, 2] = case.present[0, 0] = False
    values = image_features(case, SPACING)
    assert np.isnan(feature(values, "gad_volume_w048"))
    assert np.isnan(feature(values, "flair_gain"))
    assert feature(values, "gad_volume_w000") == 0


def test_a_case_is_measured_for_lesion_regions_and_earlier_lesions() -> None:
    case = case_arrays()
    case.masks[2, 2, 1, 4:6, 8] = case.masks[1, 2, 1, 4, 4] = case.masks[1, 2, 3, 9, 9] = 1
    measured = measure_case(0, case, SPACING)
    assert measured.regions.tolist() == [False, True]  # voxels of the cortex alone
    assert measured.net2_count_current == 2
    case.parcellation[:] = 0
    case.present[1, 3] = False
    measured = measure_case(0, case, SPACING)
    assert measured.regions is None
    assert measured.net2_count_current is None


def test_image_features_do_not_read_w096() -> None:
    case = case_arrays()
    before = image_features(case, SPACING)
    case.masks[2] = 1
    case.flair[2] = 0
    assert np.array_equal(image_features(case, SPACING), before)
    assert measure_case(0, case, SPACING).outcome.plain == 1
    assert measure_case(0, case, SPACING).regions.tolist() == [True, True]
    case.present[2, 3] = False
    assert measure_case(0, case, SPACING).outcome is None

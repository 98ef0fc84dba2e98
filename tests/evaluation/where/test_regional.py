"""Regional scores: thresholds by one rule, without the outcomes of test cases."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from lesioncast.evaluation.analysis.regional import (
    RegionalInputs,
    RegionalReport,
    matching_threshold,
    regional_report,
)
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary
from lesioncast.evaluation.metrics.mask_comparison import ObservedMask, compare_masks
from tests.evaluation.test_report import ARMS, outcomes

SAMPLES = 8
TRAIN, TEST, VALIDATION = (
    outcomes(cases, seed=seed, first=1000 * seed) for cases, seed in ((600, 1), (240, 2), (120, 3))
)


def summaries(table: OutcomeTable, present: np.ndarray) -> list[EnsembleSummary]:
    """Return ensembles whose samples have a lesion in a region where `present` [k, n, region]."""
    empty = np.zeros((2, 2, 2), bool)
    comparison = compare_masks(np.stack([empty] * len(present)), ObservedMask(empty), (3, 3, 3))
    zeros = np.zeros(len(present), np.int64)
    return [
        EnsembleSummary(
            plain=zeros, opened=zeros, spatial=replace(comparison, regions=present[:, row])
        )
        for row in range(len(table.case))
    ]


def draws(table: OutcomeTable, *, seed: int) -> np.ndarray:
    """Draw samples that know half of the truth of each region, [k, n, region]."""
    rng = np.random.default_rng(seed)
    return rng.random((SAMPLES, *table.regions.shape)) < 0.1 + 0.5 * table.regions


def report_of(
    present: np.ndarray, *, test: OutcomeTable = TEST, validation: np.ndarray | None = None
) -> RegionalReport:
    given = RegionalInputs(TRAIN, test, summaries(test, present))
    if validation is not None:
        given = replace(
            given,
            validation=VALIDATION,
            validation_summaries=summaries(VALIDATION, validation),
        )
    report = regional_report(
        given, arms=len(ARMS), monte_carlo_runs=50, bootstrap=Bootstrap(100, 0)
    )
    assert report is not None
    return report


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.8, 1.0])
def test_a_threshold_flags_the_share_as_nearly_as_the_values_allow(share: float) -> None:
    values = np.random.default_rng(0).integers(0, 5, 200) / 4
    threshold = matching_threshold(values, share)
    flagged = {level: np.mean(values >= level) for level in (*np.unique(values), np.inf)}
    best = min(abs(one - share) for one in flagged.values())
    assert abs(flagged[threshold] - share) == pytest.approx(best)


def test_a_constant_probability_says_no_of_a_rare_region_and_yes_of_a_common_one() -> None:
    assert matching_threshold(np.full(50, 0.3), 0.1) == np.inf
    assert matching_threshold(np.full(50, 0.3), 0.9) == 0.3


def test_scores_equal_scikit_learn_at_the_stated_threshold() -> None:
    present = draws(TEST, seed=4)
    report = report_of(present, validation=draws(VALIDATION, seed=5))
    for index, region in enumerate(report.regions.values()):
        true, share = TEST.regions[:, index] == 1, present[:, :, index].mean(axis=0)
        scores = region.methods["sampled"]
        assert scores.auc.value == pytest.approx(roc_auc_score(true, share))
        assert scores.average_precision.value == pytest.approx(average_precision_score(true, share))
        flagged = share >= scores.threshold
        assert scores.balanced_accuracy.value == pytest.approx(
            balanced_accuracy_score(true, flagged)
        )
        assert region.training_share == TRAIN.regions[:, index].mean()


def test_thresholds_come_from_validation_cases_where_there_are_any() -> None:
    present, validation = draws(TEST, seed=4), draws(VALIDATION, seed=5)
    report = report_of(present, validation=validation)
    assert report.threshold_cases == len(VALIDATION.case)
    for index, region in enumerate(report.regions.values()):
        assert region.methods["sampled"].threshold == matching_threshold(
            validation[:, :, index].mean(axis=0), region.training_share
        )
    assert report_of(present).threshold_cases == 0


@pytest.mark.parametrize("has_validation", [False, True])
def test_no_threshold_depends_on_the_outcome_of_a_test_case(has_validation: bool) -> None:
    present = draws(TEST, seed=4)
    validation = draws(VALIDATION, seed=5) if has_validation else None
    other = replace(TEST, regions=1 - TEST.regions)
    before, after = (report_of(present, test=test, validation=validation) for test in (TEST, other))
    for name, region in before.regions.items():
        for key, scores in region.methods.items():
            assert scores.threshold == after.regions[name].methods[key].threshold


def test_oracle_constant_and_shuffled_samples_get_the_scores_that_they_must() -> None:
    true = TEST.regions == 1
    oracle = report_of(np.stack([true] * SAMPLES))
    constant = report_of(np.zeros((SAMPLES, *true.shape), bool))
    mixed = report_of(np.random.default_rng(6).permutation(draws(TEST, seed=4), axis=1))
    for name in oracle.regions:
        best, none, chance = (
            report.regions[name].methods["sampled"] for report in (oracle, constant, mixed)
        )
        assert best.auc.value == best.average_precision.value == best.f1.value == 1
        assert none.auc.value == none.balanced_accuracy.value == 0.5
        assert none.average_precision.value == pytest.approx(oracle.regions[name].positives / 240)
        assert none.precision.value is None
        assert chance.auc.low < 0.5 < chance.auc.high


def test_a_rare_region_is_not_decided_by_the_rule_of_a_half() -> None:
    """Samples that seldom reach half of them still tell the cases apart, as every method may."""
    rng = np.random.default_rng(7)
    faint = rng.random((SAMPLES, *TEST.regions.shape)) < 0.02 + 0.2 * TEST.regions
    scores = report_of(faint).regions["cortex"].methods["sampled"]
    share = faint[:, :, 1].mean(axis=0)
    half = balanced_accuracy_score(TEST.regions[:, 1] == 1, share >= 0.5)
    assert scores.threshold < 0.5
    assert half < 0.6 < 0.7 < scores.balanced_accuracy.value


def test_the_rate_of_the_arm_knows_the_arm_alone() -> None:
    report = report_of(draws(TEST, seed=4))
    for index, region in enumerate(report.regions.values()):
        rate = np.array([TRAIN.regions[TRAIN.arm == arm, index].mean() for arm in range(6)])
        expected = roc_auc_score(TEST.regions[:, index], rate[TEST.arm])
        assert region.methods["arm_rate"].auc.value == pytest.approx(expected)
        monte_carlo = region.methods["monte_carlo"]
        assert monte_carlo.threshold is None
        assert monte_carlo.auc.value == pytest.approx(0.5, abs=0.03)


def test_risks_in_closed_form_have_a_row_and_a_threshold_of_their_own() -> None:
    """A stated risk that knows the truth is perfect, whatever the samples say."""
    present = draws(TEST, seed=4)
    stated = 0.1 + 0.5 * TEST.regions
    given = RegionalInputs(TRAIN, TEST, summaries(TEST, present), closed_form=stated)
    report = regional_report(
        given, arms=len(ARMS), monte_carlo_runs=50, bootstrap=Bootstrap(100, 0)
    )
    assert report is not None
    assert "closed_form" not in report_of(present).methods
    for index, region in enumerate(report.regions.values()):
        scores = region.methods["closed_form"]
        assert scores.auc.value == 1
        expected = matching_threshold(stated[:, index], region.training_share)
        assert scores.threshold == expected
    unknown = replace(given, closed_form=np.where(np.arange(240)[:, None] == 3, np.nan, stated))
    without = regional_report(
        unknown, arms=len(ARMS), monte_carlo_runs=50, bootstrap=Bootstrap(100, 0)
    )
    assert without is not None
    assert "closed_form" not in without.methods

"""Whole evaluations on synthetic outcomes: an oracle is perfect, a shuffled forecast is chance."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.evaluation.analysis.baseline_table import BySession
from lesioncast.evaluation.analysis.calibration import ValidationCases
from lesioncast.evaluation.analysis.performance import CountScores
from lesioncast.evaluation.analysis.schema import EvaluationReport, OpeningReport
from lesioncast.evaluation.analysis.scoring import (
    CounterfactualCounts,
    EvaluationContext,
    EvaluationInputs,
)
from lesioncast.evaluation.evaluate import EvaluationResult, evaluate
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.calibration import reliability_curve
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummaries, EnsembleSummary
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.metrics.mask_comparison import ObservedMask, compare_masks
from lesioncast.evaluation.reporting import files
from lesioncast.evaluation.reporting.files import write_evaluation
from lesioncast.evaluation.reporting.findings import findings
from lesioncast.evaluation.reporting.json_io import read_report, report_from_json, report_to_json
from lesioncast.evaluation.reporting.markdown.effects import NO_FLOOR
from lesioncast.evaluation.reporting.markdown.report import describe_monotonicity, render_markdown
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.ensemble import ExpectedOutcomes, stratified_error
from lesioncast.imaging.features.image_features import IMAGE_FEATURES
from lesioncast.markdown import DASH, format_estimate
from lesioncast.simulation.outcome_law.posterior import CounterfactualMoments, Moments

ARMS = PAPER_ARM_NAMES
RATE = np.array([0.6, 0.55, 0.5, 0.35, 0.25, 0.0])
SETTINGS = EvaluationSettings(samples=8, bootstrap=100, monte_carlo_runs=8)
SAMPLES = SETTINGS.samples
MM1 = (3.0, 1.0, 1.0)
MM3 = (3.0, 3.0, 3.0)


def outcomes(cases: int, *, seed: int, first: int = 0) -> OutcomeTable:
    """Make cases whose burden decides activity with the arm; one image feature shows the burden."""
    rng = np.random.default_rng([seed, 7])
    arm = np.arange(cases) % len(ARMS)
    burden = rng.random(cases)
    active = burden < RATE[arm]
    count = (active * (1 + rng.poisson(2, cases))).astype(float)
    return OutcomeTable(
        case=tuple(range(first, first + cases)),
        subjects=tuple(f"sub-{first + row:04d}" for row in range(cases)),
        arm=arm,
        image_features=np.pad(burden[:, None], ((0, 0), (0, len(IMAGE_FEATURES) - 1))),
        plain=count,
        opened=np.maximum(count - 1, 0),
        net2_count_current=np.where(arm == 0, np.nan, rng.poisson(1, cases)),
        regions=np.column_stack([active, count > 2]).astype(float),
        trial=(None,) * cases,
    )


def with_covariate(given: OutcomeTable) -> OutcomeTable:
    """Let a covariate show the burden instead; the image feature becomes that of another case."""
    mixed = np.random.default_rng(4).permutation(given.image_features)
    return replace(given, image_features=mixed, covariates=given.image_features[:, :1])


def certain(test: OutcomeTable, counts: np.ndarray) -> dict[tuple[int, int], EnsembleSummary]:
    """Return ensembles whose samples all have the same count; the opening removes one lesion."""
    return {
        (case, int(arm)): EnsembleSummary(
            plain=np.full(SAMPLES, int(count)),
            opened=np.full(SAMPLES, max(int(count) - 1, 0)),
        )
        for case, arm, count in zip(test.case, test.arm, counts, strict=True)
    }


def evaluated(
    test: OutcomeTable,
    counts: EnsembleSummaries,
    *,
    counterfactual_cases: tuple[int, ...] = (),
    spacing: tuple[float, float, float] = MM3,
    expected: dict[int, tuple[ExpectedOutcomes, ...]] | None = None,
    truth: CounterfactualCounts | None = None,
    law: dict[int, CounterfactualMoments] | None = None,
) -> EvaluationResult:
    context = EvaluationContext(ARMS, spacing, "f" * 64, 0, ("Research use only.",))
    inputs = EvaluationInputs(
        train=outcomes(600, seed=1),
        test=test,
        factual=counts,
        counterfactual_cases=counterfactual_cases,
        expected=expected or {},
        ground_truth=truth,
        law=law or {},
    )
    return evaluate(inputs, context, SETTINGS)


TEST = outcomes(240, seed=2, first=1000)


@pytest.fixture(scope="module")
def oracle() -> EvaluationReport:
    return evaluated(TEST, certain(TEST, TEST.plain)).report


@pytest.fixture(scope="module")
def shuffled() -> EvaluationReport:
    mixed = np.random.default_rng(9).permutation(TEST.plain)
    return evaluated(TEST, certain(TEST, mixed)).report


def answer(report: EvaluationReport, title: str) -> str:
    """Return the finding under `title`."""
    return next(finding.text for finding in findings(report) if finding.title == title)


def pooled(report: EvaluationReport, method: str, metric: str) -> Estimate:
    """Return one score of one method over all cases."""
    variant = report.variants["plain"]
    of_count = metric in {field.name for field in fields(CountScores)}
    part = variant.count if of_count else variant.activity
    return getattr(part["pooled"].methods[method], metric)


def test_an_oracle_has_perfect_scores_everywhere(oracle: EvaluationReport) -> None:
    for metric, perfect in {
        "auc": 1,
        "average_precision": 1,
        "auc_within_arm": 1,
        "log_mse": 0,
        "crps": 0,
    }.items():
        assert pooled(oracle, "sampled", metric).value == pytest.approx(perfect)
        assert pooled(oracle, "sampled", metric).low == pytest.approx(perfect)
    assert pooled(oracle, "sampled", "brier").value == 0
    assert pooled(oracle, "sampled_log_mean", "log_mse").value == pytest.approx(0)


def test_a_shuffled_forecast_is_chance_and_loses_to_the_arm_rate(
    shuffled: EvaluationReport,
) -> None:
    auc = pooled(shuffled, "sampled", "auc")
    assert auc.low < 0.5 < auc.high
    assert pooled(shuffled, "sampled", "average_precision").value == pytest.approx(0.38, abs=0.09)
    gap = next(
        row.difference
        for row in shuffled.variants["plain"].differences
        if (row.metric, row.minus_method) == ("auc", "arm_rate")
    )
    assert gap.high < 0


def test_baselines_rank_as_they_must(oracle: EvaluationReport) -> None:
    # Monte Carlo is below the arm's rate, which is below a feature that shows the burden.
    aucs = [pooled(oracle, key, "auc").value for key in ("monte_carlo", "arm_rate", "regression")]
    assert aucs == sorted(aucs)
    assert pooled(oracle, "arm_rate", "auc_within_arm").value == pytest.approx(0.5)
    assert pooled(oracle, "regression", "auc_within_arm").value > 0.9
    log_mse = [
        pooled(oracle, key, "log_mse").value for key in ("arm_rate", "arm_log_mean", "regression")
    ]
    assert log_mse == sorted(log_mse, reverse=True)


def test_baselines_do_not_depend_on_the_forecast(
    oracle: EvaluationReport, shuffled: EvaluationReport
) -> None:
    for key in ("monte_carlo", "arm_rate", "regression"):
        assert pooled(oracle, key, "auc") == pooled(shuffled, key, "auc")


def test_covariates_are_compared_with_the_regression_by_a_paired_difference() -> None:
    train, test = with_covariate(outcomes(600, seed=1)), with_covariate(TEST)
    context = EvaluationContext(ARMS, MM3, "f" * 64, 0)
    counts = certain(test, test.plain)
    report = evaluate(EvaluationInputs(train, test, counts), context, SETTINGS).report
    gaps = {
        (row.method, row.minus_method, row.metric): row.difference
        for row in report.variants["plain"].differences
    }
    assert gaps["regression_covariates", "regression", "auc"].low > 0.1
    assert gaps["sampled", "regression_covariates", "auc"].value > 0
    text = render_markdown(report)
    assert " and covariates |" in text


def test_without_covariates_there_is_one_regression(oracle: EvaluationReport) -> None:
    assert [key for key in oracle.methods if key.startswith("regression")] == ["regression"]
    minus = {row.minus_method for row in oracle.variants["plain"].differences}
    assert minus == {"arm_rate", "regression"}
    # Nor is there a row of a prior, which these ensembles lack.
    assert [key for key in oracle.methods if "prior" in key] == []
    assert oracle.methods["sampled"] == "networks as sampled (8 samples)"


def test_an_arm_without_active_cases_is_undefined_and_says_how_many(
    oracle: EvaluationReport,
) -> None:
    group = oracle.variants["plain"].activity["ocrelizumab"]
    assert (group.cases, group.positives) == (40, 0)
    for method in group.methods.values():
        assert method.auc.value is None
        assert method.average_precision.value is None
    lines = [
        line for line in render_markdown(oracle).splitlines() if line.startswith("| ocrelizumab")
    ]
    assert f"| 0 of 40 | {DASH} |" in lines[0]


def test_published_figures_have_their_own_column(oracle: EvaluationReport) -> None:
    text = render_markdown(oracle)
    assert "published model, baseline (other data)" in text
    placebo = next(
        line for line in text.splitlines() if line.startswith("| placebo | ") and " of " in line
    )
    assert placebo.endswith("| 0.783, 0.513 |")


def test_counts_are_reported_with_and_without_an_effective_opening() -> None:
    counts = certain(TEST, TEST.plain)
    opened_report = evaluated(TEST, counts, spacing=MM1).report
    assert list(opened_report.variants) == ["plain", "opened", "opened_forecast"]
    means = {
        name: (
            variant.count["pooled"].observed_mean,
            variant.count["pooled"].methods["sampled"].mean_count,
        )
        for name, variant in opened_report.variants.items()
    }
    plain, opened = TEST.plain.mean(), TEST.opened.mean()
    assert means["plain"] == pytest.approx((plain, plain))
    assert means["opened"] == pytest.approx((opened, opened))
    assert means["opened_forecast"] == pytest.approx((plain, opened))
    coarse = evaluated(TEST, counts).report
    assert list(coarse.variants) == ["plain"]
    assert coarse.opening == OpeningReport(
        in_plane_mm=5.0, element=(1, 1, 1), no_op=True, applied=False
    )


def test_bias_is_the_mean_surplus_of_forecast_lesions() -> None:
    arm = TEST.arm == 0
    for extra, verdict in ((2, "too many"), (0, "within what chance allows"), (-1, "too few")):
        drawn = np.maximum(TEST.plain + extra, 0)
        report = evaluated(TEST, certain(TEST, drawn), spacing=MM1).report
        groups = report.variants["plain"].count
        for name, member in (("pooled", slice(None)), ("placebo", arm)):
            bias = groups[name].methods["sampled"].bias
            assert bias.value == pytest.approx((drawn - TEST.plain)[member].mean())
            assert bias.low <= bias.value <= bias.high
        text = answer(report, "How many new lesions?")
        assert verdict in text
        assert f"| {format_estimate(groups['pooled'].methods['sampled'].bias, digits=2)} |" in (
            render_markdown(report)
        )


def box_of(lesions: float) -> np.ndarray:
    """Return a mask with that many lesions of 18 mm3 in a row along w."""
    mask = np.zeros((2, 4, 64), bool)
    mask[0, 1:3, : 4 * int(lesions) : 4] = mask[0, 1:3, 1 : 4 * int(lesions) : 4] = True
    return mask


def with_masks(given: OutcomeTable, counts: np.ndarray) -> dict[tuple[int, int], EnsembleSummary]:
    """Add masks to `certain`: the first two lesions lie in white matter, others in cortex."""
    labels = np.full((2, 4, 64), 2, np.int16)
    labels[:, :, 8:] = 3
    return {
        key: replace(
            summary,
            spatial=compare_masks(
                np.stack([box_of(count)] * SAMPLES),
                ObservedMask(box_of(true), labels),
                (3.0, 1.5, 1.0),
            ),
        )
        for (key, summary), count, true in zip(
            certain(given, counts).items(), counts, given.plain, strict=True
        )
    }


def estimates_of(scores: object) -> list[Estimate]:
    """Return the estimates of a record; what else it holds is left out."""
    return [value for value in vars(scores).values() if isinstance(value, Estimate)]


VALIDATION = outcomes(120, seed=3, first=5000)


def evaluated_with_validation(counts: np.ndarray) -> EvaluationResult:
    """Evaluate test cases whose masks have `counts`, with a perfect forecast for validation."""
    summaries = with_masks(TEST, counts) | certain(VALIDATION, VALIDATION.plain)
    context = EvaluationContext(ARMS, MM3, "f" * 64, 0)
    train = outcomes(600, seed=1)
    train = replace(train, trial=tuple("bravo" if arm < 2 else None for arm in train.arm))
    return evaluate(
        EvaluationInputs(train, TEST, summaries, validation=VALIDATION), context, SETTINGS
    )


def test_an_oracles_masks_regions_and_intervals_are_perfect() -> None:
    report = evaluated_with_validation(TEST.plain).report
    for region, positives in zip(("white_matter", "cortex"), TEST.regions.sum(axis=0), strict=True):
        group = report.regional.regions[region]
        assert group.positives == positives
        for method in ("sampled", "one_sample"):
            assert all(score.value == 1 for score in estimates_of(group.methods[method]))
        assert group.methods["monte_carlo"].balanced_accuracy.value < 0.6
        assert group.methods["monte_carlo"].auc.value == pytest.approx(0.5, abs=0.05)
    masks = report.masks.groups["pooled"]
    assert masks.f1_sample.value == masks.f1_majority.value == 1
    assert masks.energy_distance.value == masks.diversity.value == 0
    assert masks.lesion_free.empty_sample_share.value == 1
    calibration = report.calibration
    assert calibration.validation == ValidationCases(
        cases=120, positives=int((VALIDATION.plain > 0).sum())
    )
    assert [one.coverage.value for one in calibration.count_intervals] == [1, 1]
    assert [one.mean_width for one in calibration.count_intervals] == [0, 0]
    brier = report.probability_calibration["sampled_recalibrated"]
    assert brier.brier.value < 0.01
    assert brier.resolution.value == pytest.approx(brier.uncertainty.value)
    (contrast,) = report.trial_contrasts.contrasts
    assert (contrast.trial, contrast.arm) == ("bravo", "laquinimod")
    assert (contrast.arm_cases, contrast.reference_cases) == (100, 100)
    assert ("placebo", "laquinimod") not in report.trial_contrasts.not_identified
    assert ("placebo", "ocrelizumab") in report.trial_contrasts.not_identified
    where = answer(report, "Where will they lie?")
    assert "an F1 of 1.000 (1.000 to 1.000)" in where
    assert "the samples are closer to the observed masks than masks without" in where
    assert "cerebral white matter 1.000 (1.000 to 1.000), cerebral cortex 1.000" in where
    assert "AUC of whether a region will have one" in where
    assert report_from_json(report_to_json(report), source="metrics.json") == report


def test_a_shuffled_forecast_is_chance_by_mask_region_and_interval() -> None:
    mixed = np.random.default_rng(9).permutation(TEST.plain)
    report = evaluated_with_validation(mixed).report
    for group in report.regional.regions.values():
        balanced = group.methods["sampled"].balanced_accuracy
        assert balanced.value == pytest.approx(0.5, abs=0.12)
        assert group.methods["sampled"].auc.value == pytest.approx(0.5, abs=0.08)
    assert report.masks.groups["pooled"].f1_sample.value < 0.6
    assert report.probability_calibration["sampled"].resolution.value < 0.02
    assert report.calibration.count_intervals[1].coverage.high < 0.9


def test_baseline_characteristics_are_by_split_and_arm() -> None:
    row = evaluated_with_validation(TEST.plain).report.baseline_characteristics
    assert list(row) == ["train", "test", "validation"]
    avonex, of_arm = row["test"]["avonex"], TEST.arm == 2
    assert avonex.cases == 40
    assert avonex.mean_count == BySession(
        current=pytest.approx(TEST.net2_count_current[of_arm].mean()),
        outcome=pytest.approx(TEST.plain[of_arm].mean()),
    )
    assert avonex.active_share.outcome == pytest.approx((TEST.plain[of_arm] > 0).mean())
    assert row["test"]["placebo"].mean_count.current is None
    assert row["train"]["total"].cases == 600


def counts_by_arm() -> tuple[dict, tuple[int, ...]]:
    """Sample cases 1000 to 1011 under every arm; sample k is active if k / 8 is below the rate."""
    counts = certain(TEST, TEST.plain)
    chosen = TEST.case[:12]
    for case in chosen:
        for arm, rate in enumerate(np.linspace(1, 0, len(ARMS))):
            active = (np.arange(SAMPLES) / SAMPLES < rate).astype(int)
            counts[case, arm] = EnsembleSummary(plain=active, opened=active)
    return counts, chosen


def test_activity_by_arm_is_the_mean_p_active_of_the_same_cases() -> None:
    counts, chosen = counts_by_arm()
    activity = evaluated(TEST, counts, counterfactual_cases=chosen).report.activity_by_arm
    rates = [row.p_active.value for row in activity.arms.values()]
    assert rates == pytest.approx([1.0, 7 / 8, 5 / 8, 4 / 8, 2 / 8, 0.0])
    assert activity.falls_at_every_step
    assert activity.cases == 12
    assert activity.first_minus_last.value == pytest.approx(1.0)


def expected_outcomes(p_active: float, lesions: float = 0.0) -> ExpectedOutcomes:
    """Return the expectations of a case with the same number of lesions in every sample."""
    return ExpectedOutcomes(p_active, lesions, float(np.log1p(lesions)))


def test_a_prior_and_the_samples_have_rows_of_their_own() -> None:
    # The prior only for lesions as drawn: it does not describe lesions after the opening.
    counts, chosen = counts_by_arm()
    drawn = evaluated(TEST, counts, counterfactual_cases=chosen, spacing=(3.0, 1.0, 1.0)).report
    for key, summary in counts.items():
        counts[key] = replace(
            summary, expected=expected_outcomes(0.9 if summary.plain.any() else 0.2)
        )
    report = evaluated(TEST, counts, counterfactual_cases=chosen, spacing=(3.0, 1.0, 1.0)).report
    prior = report.variants["plain"].activity["pooled"].methods["prognostic_prior"]
    active = (TEST.plain > 0).mean()
    assert prior.mean_probability == pytest.approx(0.9 * active + 0.2 * (1 - active), abs=0.05)
    assert "prognostic_prior" not in report.variants["opened"].activity["pooled"].methods
    for name in ("sampled", "sampled_log_mean", "arm_rate"):  # the prior changes none of them
        for variant in ("plain", "opened"):
            mine, other = report.variants[variant], drawn.variants[variant]
            assert mine.count["pooled"].methods[name] == other.count["pooled"].methods[name]
            if name != "sampled_log_mean":
                assert (
                    mine.activity["pooled"].methods[name] == other.activity["pooled"].methods[name]
                )
    assert report.methods["sampled"] == "prior and networks as sampled (8 samples)"
    assert "By the prognostic prior, without any sample," in answer(
        report, "Is the probability reliable?"
    )
    assert "By the share of samples" in answer(drawn, "Is the probability reliable?")


def test_an_oracle_and_a_constant_prior_get_the_scores_that_they_must() -> None:
    mixed = np.random.default_rng(9).permutation(TEST.plain)
    counts = certain(TEST, mixed)
    perfect, constant = (
        evaluated(
            TEST,
            {
                key: replace(counts[key], expected=ExpectedOutcomes(*outcomes))
                for key, outcomes in zip(counts, rows, strict=True)
            },
        ).report
        for rows in (
            [(float(true > 0), true, np.log1p(true)) for true in TEST.plain],
            [(0.4, 1.0, 0.5)] * len(counts),
        )
    )
    for metric, best in {"auc": 1, "average_precision": 1, "brier": 0, "log_mse": 0}.items():
        assert pooled(perfect, "prognostic_prior", metric).value == pytest.approx(best)
    assert pooled(perfect, "prognostic_prior_log_mean", "log_mse").value == pytest.approx(0)
    assert pooled(constant, "prognostic_prior", "auc").value == 0.5
    share = (TEST.plain > 0).mean()
    assert pooled(constant, "prognostic_prior", "average_precision").value == pytest.approx(share)
    errors = (np.log1p(TEST.plain) - np.log(2)) ** 2
    assert pooled(constant, "prognostic_prior", "log_mse").value == pytest.approx(errors.mean())
    for report in (perfect, constant):  # shuffled samples stay chance beside either prior
        auc = pooled(report, "sampled", "auc")
        assert auc.low < 0.5 < auc.high
    gaps = {
        (row.method, row.minus_method): row.difference.value
        for row in perfect.variants["plain"].differences
        if row.metric == "auc"
    }
    assert gaps["sampled", "prognostic_prior"] == pytest.approx(
        pooled(perfect, "sampled", "auc").value - 1
    )


def test_an_expected_log_count_is_scored_as_the_priors() -> None:
    counts = certain(TEST, np.random.default_rng(9).permutation(TEST.plain))
    assert pooled(evaluated(TEST, counts).report, "sampled_log_mean", "log_mse").value > 0.1
    for (case, arm), summary in counts.items():
        true = TEST.plain[TEST.case.index(case)]
        counts[case, arm] = replace(summary, expected=expected_outcomes(0.5, true))
    report = evaluated(TEST, counts).report
    assert pooled(report, "prognostic_prior_log_mean", "log_mse").value == pytest.approx(0)
    assert pooled(report, "sampled_log_mean", "log_mse").value > 0.1
    (gap,) = (
        row
        for row in report.variants["plain"].differences
        if row.method == "prognostic_prior_log_mean"
    )
    assert (gap.minus_method, gap.metric) == ("regression", "log_mse")
    assert gap.difference.value == -pooled(report, "regression", "log_mse").value
    text = answer(report, "How many new lesions?")
    assert "log counts of the prognostic prior it is 0.00 (0.00 to 0.00), better than" in text


def test_expected_activity_by_arm_covers_every_test_case() -> None:
    counts, chosen = counts_by_arm()
    slopes = np.random.default_rng(3).random(len(TEST.case))
    expected = {
        case: tuple(expected_outcomes(slope * share) for share in np.linspace(1, 0, len(ARMS)))
        for case, slope in zip(TEST.case, slopes, strict=True)
    }
    truth = {(case, arm): int(arm < 2) for case in TEST.case for arm in range(len(ARMS))}
    report = evaluated(
        TEST, counts, counterfactual_cases=chosen, expected=expected, truth=truth
    ).report
    activity, drawn = (
        report.activity_by_arm,
        evaluated(TEST, counts, counterfactual_cases=chosen).report.activity_by_arm,
    )
    assert (activity.cases, drawn.cases) == (len(TEST.case), 12)
    rates = [row.p_active.value for row in activity.arms.values()]
    assert rates == pytest.approx(slopes.mean() * np.linspace(1, 0, len(ARMS)))
    assert [row.true_rate for row in activity.arms.values()] == [1, 1, 0, 0, 0, 0]
    assert all(row.monte_carlo_error is None for row in activity.arms.values())
    assert any(row.monte_carlo_error > 0 for row in drawn.arms.values())
    assert "as the prognostic prior states it" in render_markdown(report)
    assert evaluated(TEST, counts, expected=expected).report.activity_by_arm.cases == len(TEST.case)


def test_expected_effects_cover_every_test_case_without_samples() -> None:
    """Training means are those of `outcomes`; the truth is one lesion under the first two arms."""
    counts = certain(TEST, TEST.plain)
    expected = {
        case: tuple(expected_outcomes(1 - arm / 5, 2.0 * (arm < 2)) for arm in range(len(ARMS)))
        for case in TEST.case
    }
    truth = {(case, arm): int(arm < 2) for case in TEST.case for arm in range(len(ARMS))}
    of_count = Moments(np.zeros(len(ARMS)), np.diag([4.0, 0, 0, 0, 0, 12.0]))
    law = dict.fromkeys(TEST.case, CounterfactualMoments(of_count, of_count))
    result = evaluated(TEST, counts, expected=expected, truth=truth, law=law)
    effects, activity = result.report.effects, result.report.activity_by_arm
    assert (effects.cases, effects.samples, activity.samples) == (len(TEST.case), None, None)
    last = effects.outcomes.count["ocrelizumab"]
    assert (last.forecast.value, last.true.value, last.pehe.value) == (-2, -1, 1)
    assert last.pehe_floor.value == pytest.approx(4)  # root of 4 + 12
    assert last.variance_reduction is None
    assert effects.mean_count_errors.forecast.value == pytest.approx(2 / 6)
    # Forecast 1, .8, .6, .4, .2, 0 and true 1, 1, 0, 0, 0, 0.
    assert activity.errors.forecast.value == pytest.approx(1.4 / 6)
    train = outcomes(600, seed=1)
    rates = [(train.plain[train.arm == arm] > 0).mean() for arm in range(len(ARMS))]
    expected_error = np.abs(np.array(rates) - [1, 1, 0, 0, 0, 0]).mean()
    assert activity.errors.training_means.value == pytest.approx(expected_error)
    assert result.counterfactual_p_active.tolist() == [
        pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    ] * (len(TEST.case))
    without = evaluated(TEST, counts, expected=expected, truth=truth).report
    assert without.effects.outcomes.count["ocrelizumab"].pehe_floor is None
    assert NO_FLOOR in render_markdown(without)
    assert NO_FLOOR not in render_markdown(result.report)
    text = answer(result.report, "What would another treatment have done?")
    assert "the share is off by 0.233 (0.233 to 0.233), that of the training patients" in text
    assert "the forecast is better than it" in text


def test_a_step_upwards_beyond_chance_names_the_arm() -> None:
    counts, chosen = counts_by_arm()
    for case in chosen:
        counts[case, 2], counts[case, 1] = counts[case, 1], counts[case, 2]
    activity = evaluated(TEST, counts, counterfactual_cases=chosen).report.activity_by_arm
    assert not activity.falls_at_every_step
    assert activity.arms_above_previous == ("avonex",)
    assert describe_monotonicity(activity) == "P(active) rises, by more than chance, to avonex."


def test_a_step_upwards_of_one_case_in_twelve_may_be_chance() -> None:
    counts, chosen = counts_by_arm()
    for case in chosen:
        counts[case, 2] = counts[case, 1]
    counts[chosen[0], 2] = counts[chosen[0], 0]
    activity = evaluated(TEST, counts, counterfactual_cases=chosen).report.activity_by_arm
    assert not activity.falls_at_every_step
    assert activity.arms_above_previous == ()


def test_true_activity_by_arm_is_reported_where_it_is_known() -> None:
    counts, chosen = counts_by_arm()
    truth = {
        (case, arm): 6 - arm - place % 2 for place, case in enumerate(chosen) for arm in range(6)
    }
    report = evaluated(TEST, counts, counterfactual_cases=chosen, truth=truth).report
    rows = list(report.activity_by_arm.arms.values())
    assert [row.true_rate for row in rows] == [1, 1, 1, 1, 1, 0.5]
    means = report.effects.mean_count.values()
    assert [row.true for row in means] == [5.5, 4.5, 3.5, 2.5, 1.5, 0.5]
    forecast = [row.forecast.value for row in means]
    assert forecast == pytest.approx([1, 7 / 8, 5 / 8, 4 / 8, 2 / 8, 0])
    assert "truly active" in render_markdown(report)
    placebo = evaluated(TEST, counts, counterfactual_cases=chosen).report.activity_by_arm.arms[
        "placebo"
    ]
    assert placebo.true_rate is None


def test_steps_between_arms_are_paired_over_cases() -> None:
    counts, chosen = counts_by_arm()
    rows = evaluated(TEST, counts, counterfactual_cases=chosen).report.activity_by_arm.arms
    assert rows["placebo"].minus_previous is None
    step = rows["laquinimod"].minus_previous
    assert (step.value, step.low, step.high) == pytest.approx((-1 / 8,) * 3)


def test_the_monte_carlo_error_by_arm_shrinks_with_the_number_of_cases() -> None:
    draws = np.random.default_rng(0).random((500, 30, 4)) < 0.3  # 500 runs of 30 cases, 4 draws
    errors = [stratified_error(run.astype(np.float64)) for run in draws]
    assert np.mean(errors) == pytest.approx(draws.mean(axis=(1, 2)).std(), rel=0.1)


def test_a_perfectly_calibrated_forecast_lies_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random(20000)
    for mean, share, low, high in reliability_curve(rng.random(20000) < chance, chance, bins=5):
        assert share == pytest.approx(mean, abs=0.025)
        assert low < share < high


def test_reliability_keeps_equal_probabilities_together() -> None:
    chance = np.repeat([0.0, 1.0], [90, 10])
    rows = reliability_curve(chance > 0, chance, bins=8)
    assert [row[:2] for row in rows] == [(0.0, 0.0), (1.0, 1.0)]


def test_an_undefined_interval_is_not_shown() -> None:
    assert format_estimate(Estimate(0.81234, 0.7, 0.9)) == "0.812 (0.700 to 0.900)"
    assert format_estimate(Estimate(0.5)) == "0.500"
    assert format_estimate(Estimate(None)) == DASH


def test_an_evaluation_is_written_as_six_files_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, chosen = counts_by_arm()
    result = evaluated(TEST, counts, counterfactual_cases=chosen)
    write_evaluation(result, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "report.html", "metrics.json", "tables.md", "estimates.csv", "cases.csv", "evaluation.png",
    }  # fmt: skip
    assert read_report(tmp_path / "metrics.json") == result.report
    rows = (tmp_path / "cases.csv").read_text().splitlines()
    assert len(rows) == 241
    assert rows[1].startswith("sub-1000,placebo,")
    assert rows[1].split(",")[-6:] == ["1.0000", "0.8750", "0.6250", "0.5000", "0.2500", "0.0000"]
    assert rows[-1].endswith(",,,,,,")
    assert (tmp_path / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = replace(result, report=replace(result.report, bundle="another bundle"))
    with monkeypatch.context() as patch:
        patch.setattr(files, "render_html", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_evaluation(other, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def interrupt(*_: object) -> str:
    raise KeyboardInterrupt

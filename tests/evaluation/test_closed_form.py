"""Forecasts in closed form: equal to those of sampling, and enough to calibrate on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.bundle.bundle import load_bundle
from lesioncast.calibration.conformal import LogCountForecast, prediction_intervals
from lesioncast.calibration.fit import calibrate
from lesioncast.evaluation.analysis.scoring import EvaluationContext, EvaluationInputs
from lesioncast.evaluation.closed_form import NOT_SAMPLED, build_closed_form, has_closed_form
from lesioncast.evaluation.evaluate import evaluate
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from lesioncast.evaluation.run import EvaluationSplit, sample_and_summarise
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.runtime import build_sampler
from lesioncast.forecasting.sampling import EnsembleRequest, ModelInput, Sample
from tests.evaluation.test_report import TEST, VALIDATION, certain, outcomes
from tests.support.forecast import write_bundle, write_store

LESIONS = np.array([0.0, 1.0, 3.0, 8.0])  # of the classes of the made-up law below


def test_closed_form_forecasts_are_those_that_sampling_states(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=4)
    write_bundle(tmp_path / "bundle", lesion_loads=(1, 4))
    inputs = store.table.inputs
    stated = build_closed_form(tmp_path / "bundle", store.path, inputs=inputs)((0, 1, 2, 3))
    sampler = build_sampler(tmp_path / "bundle", store.path, device="cpu", inputs=inputs)
    batch = sampler(tuple(Sample(EnsembleRequest(case, 0), case) for case in range(4)))
    received = [store.cases[case].arm_index for case in range(4)]
    assert len(set(received)) == 3
    for case, arm in enumerate(received):
        found, expected = stated[case], batch.expected[ModelInput(case)][arm]
        assert found[:4] == pytest.approx(expected[:4])
        assert found.load_edges == pytest.approx(expected.load_edges)
        assert (found.clipped, found.pattern) == (expected.clipped, expected.pattern)
        assert found.pattern == "w000 and w048: all kinds of image"
    assert len({outcome.p_active for outcome in stated}) > 1


def test_only_a_prior_states_counts_and_none_states_opened_ones(tmp_path: Path) -> None:
    write_bundle(tmp_path / "sampled")
    write_bundle(tmp_path / "prior", lesion_loads=(1, 4))
    sampled, prior = load_bundle(tmp_path / "sampled"), load_bundle(tmp_path / "prior")
    assert not has_closed_form(sampled, opening=False)
    assert has_closed_form(prior, opening=False)
    assert not has_closed_form(prior, opening=True)


def test_validation_cases_are_requested_only_where_they_must_be_sampled(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=6)
    split = EvaluationSplit((), tuple(store.cases[:4]), (), tuple(store.cases[4:]))
    assert [one.case for one in split.factual_requests(validation=False)] == [0, 1, 2, 3]
    assert [one.case for one in split.factual_requests(validation=True)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_sampling_takes_all_cpus_and_validation_is_still_forecast_in_closed_form(
    ray_cluster: None, tmp_path: Path
) -> None:
    """The cluster of the tests has four CPUs, and four actors sample."""
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=6)
    write_bundle(tmp_path / "bundle", lesion_loads=(1, 4))
    split = EvaluationSplit((), tuple(store.cases[:4]), (), tuple(store.cases[4:]))
    summaries = sample_and_summarise(
        store,
        split,
        load_bundle(tmp_path / "bundle"),
        settings=EvaluationSettings(samples=3, batch_size=3, workers=4),
        seed=0,
        opening=False,
    ).factual
    samples = {case: len(summary.plain) for (case, _), summary in summaries.items()}
    assert samples == {0: 3, 1: 3, 2: 3, 3: 3, 4: 0, 5: 0}
    assert all(summary.expected is not None for summary in summaries.values())


def exact_law(cases: int, seed: int) -> tuple[EvaluationCases, LogCountForecast, np.ndarray]:
    """Draw cases whose class follows their own law; return cases, forecast and log odds.

    The count of a class is known, so mean and spread between the classes are the exact law's.
    """
    rng = np.random.default_rng(seed)
    law = rng.dirichlet(0.4 * np.ones(len(LESIONS)), cases).clip(1e-6)
    law /= law.sum(axis=1, keepdims=True)
    drawn = (rng.random((cases, 1)) > law.cumsum(axis=1)[:, :-1]).sum(axis=1)
    count = LESIONS[drawn]
    logs = np.log1p(LESIONS)
    mean = law @ logs
    spread = np.sqrt(law @ logs**2 - mean**2)
    none = np.zeros(cases)
    table = EvaluationCases(("",) * cases, none.astype(int), none[:, None], count)
    return table, LogCountForecast(mean, spread), np.log((1 - law[:, 0]) / law[:, 0])


def test_an_exact_law_in_closed_form_needs_no_recalibration_and_covers_nominally() -> None:
    validation, forecast, log_odds = exact_law(40000, 0)
    calibration = calibrate(validation.count, forecast, log_odds)
    curve = calibration.platt_scaling
    assert (curve.slope, curve.intercept) == (pytest.approx(1, abs=0.06), pytest.approx(0, abs=0.1))
    shares = []
    for trial in range(40):
        known, of_known, log_odds = exact_law(300, 2 * trial + 1)
        calibration = calibrate(known.count, of_known, log_odds)
        test, of_test, _ = exact_law(300, 2 * trial + 2)
        low, high = calibration.intervals(of_test)
        shares.append(np.mean((low <= test.count) & (test.count <= high)))
    assert 0.89 < np.mean(shares) < 0.95


def test_a_forecast_between_two_classes_has_a_wider_interval_than_a_certain_one() -> None:
    logs = np.log1p(np.array([0.0, 8.0]))
    forecast = LogCountForecast(np.array([0.0, logs.mean()]), np.array([0.0, logs.std()]))
    low, high = prediction_intervals(forecast, 1.0)
    assert (low.tolist(), high.tolist()) == ([0, 0], [1, 17])


def in_closed_form(count: float) -> EnsembleSummary:
    """Return an exact forecast of a case that will have `count` lesions, without samples."""
    expected = ExpectedOutcomes(float(count > 0), count, float(np.log1p(count)))
    return EnsembleSummary(plain=NOT_SAMPLED, opened=NOT_SAMPLED, expected=expected)


def test_an_evaluation_calibrates_on_cases_without_samples() -> None:
    """Opened counts have no closed form, so that their variants are not calibrated."""
    validation = {
        (case, int(arm)): in_closed_form(count)
        for case, arm, count in zip(VALIDATION.case, VALIDATION.arm, VALIDATION.plain, strict=True)
    }
    sampled = {
        key: replace(summary, expected=in_closed_form(count).expected)
        for (key, summary), count in zip(certain(TEST, TEST.plain).items(), TEST.plain, strict=True)
    }
    report = evaluate(
        EvaluationInputs(outcomes(600, seed=1), TEST, sampled | validation, validation=VALIDATION),
        EvaluationContext(PAPER_ARM_NAMES, (3.0, 1.0, 1.0), "f" * 64, 0),
        EvaluationSettings(samples=8, bootstrap=100, monte_carlo_runs=8),
    ).report
    assert report.calibration.validation.cases == 120
    assert [one.coverage.value for one in report.calibration.count_intervals] == [1, 1]
    assert [one.mean_width for one in report.calibration.count_intervals] == [0, 0]
    recalibrated = {
        name: "prognostic_prior_recalibrated" in variant.activity["pooled"].methods
        for name, variant in report.variants.items()
    }
    assert "recalibrated on 120 validation cases" in render_markdown(report)
    assert recalibrated == {"plain": True, "opened": False, "opened_forecast": False}

"""The decision curve: exact cases, a direct computation, and the plot."""

import numpy as np
import pytest

from lesioncast.evaluation.analysis.validity.decision_curve import (
    TABLE_THRESHOLDS,
    THRESHOLDS,
    DecisionCurve,
    decision_curve,
)
from lesioncast.evaluation.baselines.methods import SAMPLED, MethodPredictions
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.reporting.drawings.decision_curve import decision_panel
from lesioncast.evaluation.reporting.html import inline_svg
from lesioncast.evaluation.reporting.json_io import report_from_json, report_to_json
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from tests.evaluation.test_report import TEST, certain, evaluated

CASES = TEST.cases(opening=False)
BOOTSTRAP = Bootstrap(200, 0)
PREVALENCE = CASES.active.mean()


def curve_of(probability: np.ndarray, cases: EvaluationCases = CASES) -> DecisionCurve:
    method = MethodPredictions("m", "m", scores=np.asarray(probability, float)[None])
    return decision_curve(cases, [method], bootstrap=BOOTSTRAP)


def counted(active: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    """Count true and false positives one by one (Vickers and Elkin 2006, equation 1)."""
    true = sum(p >= threshold and bool(a) for p, a in zip(probability, active, strict=True))
    false = sum(p >= threshold and not a for p, a in zip(probability, active, strict=True))
    return true / len(active) - false / len(active) * threshold / (1 - threshold)


def test_an_oracle_has_the_prevalence_as_net_benefit_at_every_threshold() -> None:
    curve = curve_of(CASES.active)
    assert curve.methods["m"].curve == pytest.approx([PREVALENCE] * len(THRESHOLDS))
    for value in curve.methods["m"].at:
        assert value.net_benefit.value == pytest.approx(PREVALENCE)
        assert value.minus_best_default.low > 0


def test_a_forecast_of_none_has_no_net_benefit_and_one_of_all_that_of_treating_all() -> None:
    assert set(curve_of(np.zeros(len(CASES.arm))).methods["m"].curve) == {0.0}
    curve = curve_of(np.ones(len(CASES.arm)))
    assert curve.methods["m"].curve == curve.treat_all
    expected = [PREVALENCE - (1 - PREVALENCE) * t / (1 - t) for t in THRESHOLDS]
    assert curve.treat_all == pytest.approx(expected)


def test_a_constant_forecast_never_beats_the_better_of_all_and_none() -> None:
    for value in curve_of(np.full(len(CASES.arm), PREVALENCE)).methods["m"].at:
        assert value.minus_best_default.value == pytest.approx(0, abs=1e-12)
        assert value.minus_best_default.high <= 1e-12


def test_a_shuffled_oracle_is_not_above_treating_all_or_none() -> None:
    shuffled = np.random.default_rng(3).permutation(CASES.active)
    for value in curve_of(shuffled).methods["m"].at:
        assert value.minus_best_default.low < 0


def test_net_benefit_equals_a_count_of_true_and_false_positives() -> None:
    probability = np.round(np.random.default_rng(0).random(len(CASES.arm)), 2)
    method = curve_of(probability).methods["m"]
    expected = [counted(CASES.active, probability, t) for t in THRESHOLDS]
    assert method.curve == pytest.approx(expected)
    rows = BOOTSTRAP.weights(len(CASES.arm)).astype(int)
    for value in method.at:
        drawn = [
            counted(np.repeat(CASES.active, row), np.repeat(probability, row), value.threshold)
            for row in rows
        ]
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (value.net_benefit.low, value.net_benefit.high) == pytest.approx((low, high))


def test_the_report_shows_the_curve_and_says_that_no_decision_follows() -> None:
    report = evaluated(TEST, certain(TEST, TEST.plain)).report
    assert report.decision_curve.methods[SAMPLED].curve == pytest.approx(
        [PREVALENCE] * len(THRESHOLDS)
    )
    assert "monte_carlo" not in report.decision_curve.methods  # several runs, no one decision
    text = render_markdown(report)
    line = next(line for line in text.splitlines() if line.startswith("| treat none |"))
    assert line.count("0.000") == len(TABLE_THRESHOLDS)
    panel = decision_panel(report)
    assert "no clinical decision follows" in panel.caption
    assert "no clinical decision follows" in text
    svg = inline_svg(panel, name="plot")
    assert f"{(CASES.active).sum()} of 240 cases active" in svg
    assert report_from_json(report_to_json(report), source="metrics.json") == report

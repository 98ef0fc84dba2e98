"""Headline, findings, calibration and effects are about the count that forecasts state."""

import numpy as np
import pytest

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.analysis.scoring import EvaluationContext, EvaluationInputs
from lesioncast.evaluation.evaluate import EvaluationResult, evaluate
from lesioncast.evaluation.reporting.findings import findings
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from lesioncast.evaluation.reporting.summary_page import evaluation_section
from lesioncast.evaluation.settings import EvaluationSettings
from tests.evaluation.test_report import TEST, VALIDATION, certain, outcomes

MM1, MM3 = (3.0, 1.0, 1.0), (3.0, 3.0, 3.0)
CASES = TEST.case[:40]


def result(*, opening: bool, spacing: tuple[float, float, float] = MM1) -> EvaluationResult:
    """Evaluate an oracle that knows the count with and without the opening, under every arm."""
    summaries = certain(TEST, TEST.plain) | certain(VALIDATION, VALIDATION.plain)
    for row, case in enumerate(CASES):
        own = summaries[case, int(TEST.arm[row])]
        summaries |= {(case, arm): own for arm in range(len(PAPER_ARM_NAMES))}
    inputs = EvaluationInputs(outcomes(600, seed=1), TEST, summaries, CASES, validation=VALIDATION)
    context = EvaluationContext(PAPER_ARM_NAMES, spacing, "f" * 64, 0, opening=opening)
    settings = EvaluationSettings(samples=8, bootstrap=100, monte_carlo_runs=4)
    return evaluate(inputs, context, settings)


@pytest.mark.parametrize(("opening", "name"), [(False, "plain"), (True, "opened")])
def test_every_section_is_about_the_count_that_forecasts_state(opening: bool, name: str) -> None:
    evaluated = result(opening=opening)
    report: EvaluationReport = evaluated.report
    observed = TEST.opened if opening else TEST.plain
    active = observed > 0
    assert report.headline is report.variants[name]
    assert report.headline.activity["pooled"].positives == active.sum()
    assert np.array_equal(evaluated.cases.count, observed)
    brier = report.probability_calibration["sampled"]
    assert brier.uncertainty.value == pytest.approx(active.mean() * (1 - active.mean()))
    validation = VALIDATION.opened if opening else VALIDATION.plain
    assert report.calibration.validation.positives == (validation > 0).sum()
    assert [one.coverage.value for one in report.calibration.count_intervals] == [1, 1]
    share = active[: len(CASES)].mean()
    assert report.activity_by_arm.arms["placebo"].p_active.value == pytest.approx(share)
    mean = observed[: len(CASES)].mean()
    assert report.effects.mean_count["placebo"].forecast.value == pytest.approx(mean)
    words = f"Forecasts count lesions {'after' if opening else 'without'} the opening"
    assert words in render_markdown(report)
    assert f"{int(active.sum())} of them active" in evaluation_section(report, heading="")
    texts = " ".join(finding.text for finding in findings(report))
    assert f"{int(active.sum())} of 240 patients had new" in texts


def test_an_opening_that_removes_nothing_leaves_the_plain_count_as_the_headline() -> None:
    report = result(opening=True, spacing=MM3).report
    assert not report.opening.applied
    assert report.headline is report.variants["plain"]

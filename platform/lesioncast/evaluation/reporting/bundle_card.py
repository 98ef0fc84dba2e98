"""The evaluation that lies beside a bundle's weights: EVALUATION.md and evaluation.json.

People read EVALUATION.md; forecasts take their warnings from evaluation.json. The manifest lists
neither file. A bundle's digest names its weights, and a new evaluation must not rename the
forecasts made from them. Instead both files name their bundle, and readers compare.
"""

from pathlib import Path

from lesioncast.bundle.evaluation_card import CARD, EvaluationCard, write_evaluation_card
from lesioncast.errors import EvaluationCardError
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.reporting.findings import findings
from storage.atomic import atomic_write


def write_card(bundle: Path, report: EvaluationReport) -> None:
    """Put the evaluation beside the weights of the bundle folder, replacing an older one.

    Raise EvaluationCardError where the folder cannot be written to.
    """
    provenance = report.provenance
    card = EvaluationCard(
        bundle=report.bundle,
        test_cases=report.cases.test,
        date=None if provenance is None else provenance.date,
        code=None if provenance is None else provenance.code,
        store=None if provenance is None else provenance.store,
        findings={finding.title: finding.text for finding in findings(report)},
        identifiability_warnings=()
        if report.identifiability_warnings is None
        else report.identifiability_warnings.warnings,
        p_active_errors=_p_active_errors(report),
    )
    try:
        write_evaluation_card(bundle, card)
        atomic_write(bundle / CARD, card_text(report).encode())
    except OSError as error:
        raise EvaluationCardError(
            f"{bundle}: expected a bundle's folder to put the evaluation in, got {error.strerror}; "
            "the report is complete, but forecasts carry no warnings of it: copy the bundle to "
            "where you may write and evaluate it there"
        ) from error


def _p_active_errors(report: EvaluationReport) -> dict[str, float]:
    """Return mean P(active) minus the true rate, by arm; empty where the truth is not known."""
    arms = {} if report.activity_by_arm is None else report.activity_by_arm.arms
    return {
        arm: row.forecast_minus_true.value
        for arm, row in arms.items()
        if row.forecast_minus_true is not None and row.forecast_minus_true.value is not None
    }


def card_text(report: EvaluationReport) -> str:
    """Return the content of EVALUATION.md."""
    provenance = report.provenance
    origin = (
        "data, code and date not recorded"
        if provenance is None
        else f"data `{provenance.store}`, {provenance.code}, {provenance.date}"
    )
    parts = [
        "# How this bundle was evaluated",
        *report.disclaimers,
        f"{report.cases.test} test cases, {report.samples} samples a case; bundle "
        f"`{report.bundle}`, {origin}. Brackets: 95 % intervals over patients.",
        *(f"## {finding.title}\n\n{finding.text}" for finding in findings(report)),
        "## What the data cannot show of treatments",
        "\n".join(f"- {sentence}" for sentence in report.warning_sentences),
        "Forecasts from this bundle carry these sentences. The manifest does not list this file: "
        "it may be replaced without another digest for the weights.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"

"""An assessment as files: metrics.json, tables.md, estimates.csv, cases.csv, evaluation.png and
report.html."""

import csv
import io
import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path

from lesioncast.evaluation.baselines.methods import MethodPredictions
from lesioncast.evaluation.evaluate import EvaluationResult
from lesioncast.evaluation.reporting.estimates_csv import estimates_csv
from lesioncast.evaluation.reporting.figures import evaluation_figure, panels, save
from lesioncast.evaluation.reporting.html import ExampleCase, render_html
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from storage.atomic import atomic_write

METRICS, TABLES, REPORT = "metrics.json", "tables.md", "report.html"
ESTIMATES, CASES, FIGURE = "estimates.csv", "cases.csv", "evaluation.png"


def write_evaluation(
    assessment: EvaluationResult,
    folder: Path,
    *,
    forced: Sequence[int],
    case: Sequence[int],
    sights: Sequence[ExampleCase] = (),
) -> None:
    """Write the six files into `folder`; `case` are the indices of the assessed rows, `sights` the
    subjects that the report shows."""
    record = json.dumps(assessment.record, indent=2, allow_nan=False) + "\n"
    atomic_write(folder / METRICS, record.encode())
    atomic_write(folder / ESTIMATES, estimates_csv(assessment.record).encode())
    atomic_write(folder / TABLES, render_markdown(assessment.record).encode())
    atomic_write(folder / CASES, cases_csv(assessment, forced=forced, case=case).encode())
    save(
        evaluation_figure(assessment.record, assessment.cases, assessment.methods),
        folder / FIGURE,
    )
    plots = panels(assessment.record, assessment.cases, assessment.methods)
    atomic_write(folder / REPORT, render_html(assessment.record, plots, sights).encode())


def cases_csv(assessment: EvaluationResult, *, forced: Sequence[int], case: Sequence[int]) -> str:
    """One row a test case: the outcome, what each method says, P(active) under forced arms."""
    arms = assessment.record["arms"]
    scoring = [method for method in assessment.methods if _single(method)]
    counting = [method for method in assessment.methods if method.counts is not None]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["participant_id", "arm", "lesions"]
        + [f"p_active_{method.key}" for method in scoring]
        + [f"lesions_{method.key}" for method in counting]
        + list(assessment.columns)
        + [f"p_active_if_{arm}" for arm in arms]
    )
    cases = assessment.cases
    for row, index in enumerate(case):
        scores = [f"{method.scores[0, row]:.4f}" for method in scoring if method.scores is not None]
        counts = [f"{method.counts[row]:.3f}" for method in counting if method.counts is not None]
        writer.writerow(
            [cases.subjects[row], arms[cases.arm[row]], f"{cases.count[row]:.0f}", *scores, *counts]
            + [_cell(values[row]) for values in assessment.columns.values()]
            + _forced_cells(assessment, forced, index)
        )
    return text.getvalue()


def _cell(value: float) -> str:
    """A number; blank where there is none."""
    return "" if isnan(value) else f"{value:.4g}"


def _single(method: MethodPredictions) -> bool:
    return method.scores is not None and len(method.scores) == 1


def _forced_cells(assessment: EvaluationResult, forced: Sequence[int], index: int) -> list[str]:
    if assessment.forced is None or index not in forced:
        return ["" for _ in assessment.record["arms"]]
    return [f"{chance:.4f}" for chance in assessment.forced[list(forced).index(index)]]

"""An evaluation as files.

metrics.json, tables.md, estimates.csv, cases.csv, evaluation.png and report.html; of maps where.png
and where_patients.png.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path

from lesioncast.evaluation.baselines.methods import MethodPredictions
from lesioncast.evaluation.evaluate import EvaluationResult
from lesioncast.evaluation.reporting.drawings.decision_curve import decision_panel
from lesioncast.evaluation.reporting.estimates_csv import estimates_csv
from lesioncast.evaluation.reporting.figures import evaluation_figure, panels, png_bytes
from lesioncast.evaluation.reporting.html import ExampleCase, Picture, render_html
from lesioncast.evaluation.reporting.json_io import report_to_json
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from storage.atomic import atomic_write

METRICS, TABLES, REPORT = "metrics.json", "tables.md", "report.html"
ESTIMATES, CASES, FIGURE = "estimates.csv", "cases.csv", "evaluation.png"
MAPS, PATIENTS = "where.png", "where_patients.png"


def write_evaluation(
    result: EvaluationResult,
    folder: Path,
    examples: Sequence[ExampleCase] = (),
    maps: Mapping[str, Picture] | None = None,
) -> None:
    """Write the files into `folder`, metrics.json last.

    All of them are rendered first: an error or a kill while they are drawn, which takes long, does
    not mix them with those of an earlier evaluation.

    The report shows the `examples` and `maps`, by the names of their files.
    """
    report, maps = result.report, maps or {}
    rows = cases_csv(result)
    figure = evaluation_figure(report, result.cases, result.methods)
    plots = (*panels(report, result.cases, result.methods), decision_panel(report))
    contents = {
        ESTIMATES: estimates_csv(report).encode(),
        TABLES: render_markdown(report).encode(),
        CASES: rows.encode(),
        FIGURE: png_bytes(figure),
        REPORT: render_html(report, plots, examples, tuple(maps.values())).encode(),
        METRICS: report_to_json(report).encode(),
    }
    for name, picture in maps.items():
        atomic_write(folder / name, picture.png)
    for name, content in contents.items():
        atomic_write(folder / name, content)


def cases_csv(result: EvaluationResult) -> str:
    """Return a table with one row a test case.

    A row holds the outcome, every method's prediction, and P(active) under every arm, blank where
    the case was not forecast under every arm.
    """
    arms = result.report.arms
    scoring = [method for method in result.methods if _has_one_run(method)]
    counting = [method for method in result.methods if method.counts is not None]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["participant_id", "arm", "lesions"]
        + [f"p_active_{method.key}" for method in scoring]
        + [f"lesions_{method.key}" for method in counting]
        + list(result.columns)
        + [f"p_active_if_{arm}" for arm in arms]
    )
    cases = result.cases
    for row, subject in enumerate(cases.subjects):
        scores = [f"{method.scores[0, row]:.4f}" for method in scoring if method.scores is not None]
        counts = [f"{method.counts[row]:.3f}" for method in counting if method.counts is not None]
        writer.writerow(
            [subject, arms[cases.arm[row]], f"{cases.count[row]:.0f}", *scores, *counts]
            + [_cell(values[row]) for values in result.columns.values()]
            + ["" if isnan(p) else f"{p:.4f}" for p in result.counterfactual_p_active[row]]
        )
    return text.getvalue()


def _cell(value: float) -> str:
    return "" if isnan(value) else f"{value:.4g}"


def _has_one_run(method: MethodPredictions) -> bool:
    """Return whether the method gives one P(active) a case; a random method gives several."""
    return method.scores is not None and len(method.scores) == 1

"""The warnings of an evaluation as Markdown: their sentences, who received what, the leak probe."""

from collections.abc import Mapping, Sequence
from typing import Any

from lesioncast.markdown import DASH, format_estimate, format_number, markdown_table

Record = Mapping[str, Any]

TITLE = "## What the data cannot show of treatments"


def warnings_section(warnings: Record | None) -> str:
    """The section of tables.md; nothing where the evaluation was not given warnings."""
    if warnings is None:
        return ""
    return "\n\n".join(
        [
            TITLE,
            "\n".join(f"- {sentence}" for sentence in warnings["sentences"]),
            _positivity(warnings["positivity"]),
            _probes(warnings["leak"]),
        ]
    )


def _positivity(positive: Record) -> str:
    trials = list(positive["trials"])
    rows = [
        [
            arm,
            *(str(positive["trials"][trial][arm]) for trial in trials),
            str(row["cases"]),
            _percent(row["offered"]),
            _percent(row["overlap"]),
        ]
        for arm, row in positive["arms"].items()
    ]
    head = [
        "arm",
        *(f"cases in {trial}" for trial in trials),
        "cases",
        "in a trial that gave the arm",
        "others who look like its patients",
    ]
    unnamed = positive["without_trial"]
    note = f" Of {unnamed} cases the trial is not known." if unnamed else ""
    return (
        f"### Who could have received which arm\n\n{markdown_table(head, rows)}\n\n"
        "Training and test cases. The last column: the share of those who did not receive the arm "
        "whose propensity for it, estimated from their images at week 0, is at least the 5th "
        f"percentile of those who did; about 95 % where patients are exchangeable.{note}"
    )


def _probes(probes: Sequence[Record]) -> str:
    rows = [
        [
            probe["of"] + (f" within {probe['within']}" if probe["within"] else ""),
            " and ".join(probe["sessions"]),
            str(probe["cases"]),
            format_estimate(probe["auc"]),
            ", ".join(
                f"{name} {format_number(auc, digits=2)}" for name, auc in probe["by_class"].items()
            )
            or DASH,
        ]
        for probe in probes
    ]
    head = ["told", "from the images of", "cases", "AUC", "one against the rest"]
    return (
        f"### Can trial or arm be told from the images?\n\n{markdown_table(head, rows)}\n\n"
        "Logistic regression on intensity, texture, shading and lesion load, on cases of other "
        "folds; 0.5 is chance, 1 certainty. Brackets: 95 % bootstrap over cases, widened since "
        "folds share training cases. At week 0 no treatment has been given yet, so what tells an "
        "arm there is who was enrolled and how they were scanned."
    )


def _percent(share: float | None) -> str:
    return DASH if share is None else f"{share:.0%}"

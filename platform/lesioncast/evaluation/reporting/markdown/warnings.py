"""The identifiability warnings as Markdown: sentences, who received what, the leakage probes."""

from collections.abc import Sequence

from lesioncast.evaluation.causal.schema import (
    IdentifiabilityWarnings,
    LeakageProbe,
    Positivity,
)
from lesioncast.markdown import DASH, format_estimate, format_number, markdown_table
from lesioncast.warning_list import texts

TITLE = "## What the data cannot show of treatments"


def warnings_section(warnings: IdentifiabilityWarnings | None) -> str:
    """Return the section of tables.md; nothing for an evaluation without warnings."""
    if warnings is None:
        return ""
    return "\n\n".join(
        [
            TITLE,
            "\n".join(f"- {sentence}" for sentence in texts(warnings.warnings)),
            _positivity(warnings.positivity),
            _probes(warnings.leakage_probes),
        ]
    )


def _positivity(positivity: Positivity) -> str:
    trials = list(positivity.cases_by_trial)
    rows = [
        [
            arm,
            *(str(positivity.cases_by_trial[trial][arm]) for trial in trials),
            str(row.cases),
            _percent(row.offered_share),
            _percent(row.overlap),
        ]
        for arm, row in positivity.arms.items()
    ]
    head = [
        "arm",
        *(f"cases in {trial}" for trial in trials),
        "cases",
        "in a trial that gave the arm",
        "others who look like its patients",
    ]
    unnamed = positivity.cases_without_trial
    note = f" The trial of {unnamed} cases is not known." if unnamed else ""
    return (
        f"### Who could have received which arm\n\n{markdown_table(head, rows)}\n\n"
        "Training and test cases. The last column is about the patients who did not receive the "
        "arm. It gives the share of them whose propensity for the arm, estimated from their images "
        "at baseline, is at least the 5th percentile of the patients who received it. It is about "
        f"95 % where patients are exchangeable.{note}"
    )


def _probes(probes: Sequence[LeakageProbe]) -> str:
    rows = [
        [
            probe.target + (f" within {probe.within_trial}" if probe.within_trial else ""),
            " and ".join(probe.sessions),
            str(probe.leakage.cases),
            format_estimate(probe.leakage.auc),
            ", ".join(
                f"{name} {format_number(auc, digits=2)}"
                for name, auc in probe.leakage.auc_by_class.items()
            )
            or DASH,
        ]
        for probe in probes
    ]
    head = ["predicted", "from the images of", "cases", "AUC", "one against the rest"]
    return (
        f"### Can trial or arm be told from the images?\n\n{markdown_table(head, rows)}\n\n"
        "Logistic regression on intensity, texture, shading and lesion load, on cases of other "
        "folds; 0.5 is chance, 1 certainty. Brackets: 95 % bootstrap over cases, widened because "
        "folds share training cases. At baseline no treatment has been given yet. What tells an "
        "arm there is who was enrolled and how they were scanned."
    )


def _percent(share: float | None) -> str:
    return DASH if share is None else f"{share:.0%}"

"""One page for a newcomer: what was run, what came out, and what it is not."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lesioncast.evaluation.analysis.performance import AUC_WITHIN_ARM, POOLED
from lesioncast.evaluation.reporting.markdown.report import (
    NAMES,
    describe_ladder,
    describe_monotonicity,
)
from lesioncast.markdown import format_estimate, format_number, markdown_table

Record = Mapping[str, Any]


def evaluation_section(record: Record, *, heading: str, figure: str | None = None) -> str:
    """The headline of an evaluation: pooled metrics beside the baselines, and the ladder."""
    variant = record["variants"]["plain"]
    activity, count = variant["activity"][POOLED], variant["count"][POOLED]
    rows = [
        [
            label,
            *(
                format_estimate(activity["methods"][key].get(m))
                for m in ("auc", AUC_WITHIN_ARM, "ap")
            ),
            format_estimate(count["methods"].get(key, {}).get("log_mse")),
        ]
        for key, label in record["methods"].items()
        if key in activity["methods"]
    ]
    head = ["method", NAMES["auc"], NAMES[AUC_WITHIN_ARM], NAMES["ap"], NAMES["log_mse"]]
    parts = [
        f"## {heading}",
        f"{record['cases']['test']} held-out subjects, {activity['positives']} of them active at "
        f"week 96; {record['samples']} samples each; bundle `{record['bundle'][:12]}`.",
        markdown_table(head, rows),
        _gaps(variant["differences"], record["methods"]),
        _ladder(record),
        f"![evaluation]({figure})" if figure else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _gaps(rows: Sequence[Record], methods: Mapping[str, str]) -> str:
    lines = [
        f"- {NAMES[row['metric']]}, {methods[row['of']]} minus {methods[row['minus']]}: "
        f"**{format_estimate(row)}**"
        for row in rows
        if row["metric"] == "auc"
    ]
    return "Paired on the same subjects (95 % bootstrap interval):\n\n" + "\n".join(lines)


def _ladder(record: Record) -> str:
    ladder = record["ladder"]
    if ladder is None:
        return ""
    rows = [
        [
            arm,
            format_estimate(row["p_active"]),
            format_number(row["true_rate"]),
            format_number(row["train_rate"]),
        ]
        for arm, row in ladder["arms"].items()
    ]
    head = ["arm", "mean P(active)", "truly active", "active, training patients of the arm"]
    return (
        f"The same {ladder['cases']} subjects under every arm, {describe_ladder(record)}. "
        f"{describe_monotonicity(ladder)} First minus last arm: "
        f"{format_estimate(ladder['first_minus_last'])}.\n\n{markdown_table(head, rows)}"
    )


def forecast_section(record: Record, *, heading: str, figure: str | None = None) -> str:
    """One subject's forecast as a table, with its figure."""
    received, observed = record["received_arm"], record["observed_lesions"]
    states = all(row["count"]["stated"] is not None for row in record["arms"].values())
    rows = [
        [
            f"**{arm}** (received)" if row["received"] else arm,
            _chance(row["p_active"]),
            *([format_number(row["count"]["stated"], digits=2)] if states else []),
            f"{row['count']['mean']:.2f} ({row['count']['sd']:.2f})",
            _difference(row["minus_reference"]["p_active"]),
            _difference(row["minus_reference"]["count"]),
        ]
        for arm, row in record["arms"].items()
    ]
    reference = record["reference_arm"]
    head = [
        "arm",
        "P(active)",
        *(["lesions expected, as stated"] if states else []),
        "lesions drawn, mean (sd)",
        f"P(active) minus {reference} (MC error)",
        f"lesions minus {reference} (MC error)",
    ]
    truth = "not known" if observed is None else f"{observed} lesions in the slab"
    parts = [
        f"## {heading}",
        f"{record['subject']}: received {received or 'an arm that is not known'}; observed at week "
        f"96: {truth}. {record['samples']} samples an arm on the same seeds; bundle "
        f"`{record['bundle'][:12]}`.",
        f"![forecast of {record['subject']}]({figure})" if figure else "",
        markdown_table(head, rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _chance(told: Record) -> str:
    """With the interval of a share of samples; what the networks state needs none."""
    interval = "" if told["stated"] else f" ({told['low']:.2f} to {told['high']:.2f})"
    return f"{told['value']:.2f}{interval}"


def _difference(gap: Record) -> str:
    return f"{gap['value']:+.2f} ({gap['mc_error']:.2f})"


def render_page(title: str, sections: Sequence[str], *, notices: Sequence[str]) -> str:
    """The whole page as Markdown, notices first."""
    warning = "\n".join(f"> {notice}" for notice in dict.fromkeys(notices))
    return "\n\n".join([f"# {title}", warning, *sections]) + "\n"


def relative_path(path: Path, *, page_folder: Path) -> str:
    """The link to a file from a page in `page_folder`."""
    return Path(os.path.relpath(path, page_folder)).as_posix()

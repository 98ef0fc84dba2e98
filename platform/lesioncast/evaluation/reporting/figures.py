"""Three panels of one evaluation: the ladder of arms, the ROC curve, calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from lesioncast.evaluation.analysis.performance import POOLED
from lesioncast.evaluation.baselines.methods import (
    ARM_RATE,
    ENSEMBLE,
    REGRESSION,
    MethodPredictions,
    by_key,
)
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.calibration import reliability_curve
from lesioncast.evaluation.metrics.names import AUC

Record = Mapping[str, Any]
Floats = npt.NDArray[np.float64]

INK, DIM, RULE = "#1c2026", "#6b7380", "#d9dde3"
STYLE = {
    ENSEMBLE: ("#c8321e", "ControlNet ensemble", 2.2),
    REGRESSION: ("#2f6f9f", "regression on image scalars", 1.4),
    ARM_RATE: ("#8a929d", "arm rate", 1.4),
}
BINS = 8


def evaluation_figure(
    record: Record,
    cases: EvaluationCases,
    methods: Sequence[MethodPredictions],
    *,
    variant: str = "plain",
) -> Figure:
    """The figure of an evaluation; `record` is what metrics.json holds."""
    figure = Figure(figsize=(13.2, 4.7), facecolor="white")
    ladder, roc, calibration = figure.subplots(1, 3, gridspec_kw={"wspace": 0.28})
    figure.subplots_adjust(left=0.055, right=0.985, top=0.89, bottom=0.25)
    _ladder(ladder, record["ladder"])
    _roc(roc, cases, methods, record["variants"][variant]["activity"][POOLED])
    _calibration(calibration, cases, methods)
    note = " ".join(record["notices"])
    size = f"{record['cases']['test']} test cases, {record['samples']} samples a case."
    figure.text(0.012, 0.025, f"{size} {note}", color=DIM, fontsize=7.5, wrap=True)
    return figure


@dataclass(frozen=True)
class Panel:
    """One panel as a figure of its own, with the words that stand for it where it is not seen."""

    figure: Figure
    caption: str
    alt: str


def panels(
    record: Record,
    cases: EvaluationCases,
    methods: Sequence[MethodPredictions],
    *,
    variant: str = "plain",
) -> tuple[Panel, ...]:
    """The three panels of `evaluation_figure`, each alone."""
    pooled = record["variants"][variant]["activity"][POOLED]
    ladder, roc, calibration = (_alone() for _ in range(3))
    _ladder(ladder, record["ladder"])
    _roc(roc, cases, methods, pooled)
    _calibration(calibration, cases, methods)
    return (
        Panel(
            _figure_of(roc),
            "Who becomes active: how many of the patients with new lesions are found (upwards) "
            "against false alarms (to the right), as the threshold falls. The diagonal is chance.",
            "ROC curves. " + _areas(pooled),
        ),
        Panel(
            _figure_of(calibration),
            "Does the probability hold: share of patients with new lesions among those given about "
            "the same probability. On the diagonal the forecast keeps its word; the lines are 95 % "
            "Wilson intervals.",
            "Reliability curves of the forecast and of the regression. "
            f"{pooled['positives']} of {pooled['cases']} cases active.",
        ),
        Panel(
            _figure_of(ladder),
            "The same patients under every arm: mean forecast probability, with the 95 % interval "
            "over patients. Open diamonds are other patients, those who received the arm.",
            "Mean P(active) by arm: " + _ladder_alt_text(record["ladder"]),
        ),
    )


def _alone() -> Axes:
    return Figure(figsize=(4.9, 4.2), layout="constrained").add_subplot()


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _areas(pooled: Record) -> str:
    areas = {key: pooled["methods"][key][AUC]["value"] for key in STYLE}
    if None in areas.values():
        return "Undefined: one class only."
    return ", ".join(f"{STYLE[key][1]} AUC {area:.3f}" for key, area in areas.items()) + "."


def _ladder_alt_text(ladder: Record | None) -> str:
    if ladder is None:
        return "not drawn."
    rows = ladder["arms"].items()
    return ", ".join(f"{arm} {row['p_active']['value']:.2f}" for arm, row in rows) + "."


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)


def _clean(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=11, weight="bold", pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=DIM, labelsize=8.5, length=0)
    axes.grid(color=RULE, lw=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def _legend(axes: Axes, **place: Any) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, handlelength=1.6, **place)


def _ladder(axes: Axes, ladder: Record | None) -> None:
    _clean(axes, "Same patients, every arm")
    axes.set_ylabel("P(active), mean", color=DIM, fontsize=9)
    if ladder is None:
        axes.text(0.5, 0.5, "not drawn", ha="center", color=DIM, fontsize=9)
        return
    names, rows = list(ladder["arms"]), list(ladder["arms"].values())
    place = np.arange(len(rows))
    chance = np.array([row["p_active"]["value"] for row in rows])
    axes.set(xlim=(-0.6, len(rows) - 0.4), xticks=place)
    axes.set_xticklabels([name.capitalize() for name in names], rotation=30, ha="right")
    label = f"forecast, {ladder['cases']} cases"
    axes.bar(place, chance, 0.56, color=STYLE[ENSEMBLE][0], alpha=0.85, label=label)
    for x, row in zip(place, rows, strict=True):
        if row["p_active"]["low"] is not None:
            axes.plot([x, x], [row["p_active"]["low"], row["p_active"]["high"]], color=INK, lw=1.2)
    _diamonds(axes, rows, "train_rate", face="white", label="training patients of the arm")
    _diamonds(axes, rows, "true_rate", face=INK, label="truth, the same cases")
    _legend(axes, loc="upper right")


def _diamonds(axes: Axes, rows: Sequence[Record], key: str, *, face: str, label: str) -> None:
    known = [x for x, row in enumerate(rows) if row[key] is not None]
    if known:
        rates = [rows[x][key] for x in known]
        axes.scatter(
            known, rates, marker="D", s=26, color=face, edgecolor=INK, zorder=3, label=label
        )


def _roc(
    axes: Axes, cases: EvaluationCases, methods: Sequence[MethodPredictions], pooled: Record
) -> None:
    _clean(axes, "Who becomes active")
    axes.set_xlabel("false positive rate", color=DIM, fontsize=9)
    axes.set_ylabel("true positive rate", color=DIM, fontsize=9)
    axes.plot([0, 1], [0, 1], color=RULE, lw=1, ls=(0, (4, 4)))
    if not cases.active.any() or cases.active.all():
        axes.text(0.5, 0.5, "undefined: one class only", ha="center", color=DIM, fontsize=9)
        return
    for key, (color, label, width) in STYLE.items():
        scores = by_key(methods, key).scores
        assert scores is not None
        false, true, _ = roc_curve(cases.active, scores[0])
        area = pooled["methods"][key]["auc"]["value"]
        axes.plot(false, true, color=color, lw=width, label=f"{label}, AUC {area:.3f}")
    _legend(axes, loc="lower right")


def _calibration(axes: Axes, cases: EvaluationCases, methods: Sequence[MethodPredictions]) -> None:
    _clean(axes, "Does the probability hold")
    axes.set_xlabel("forecast P(active)", color=DIM, fontsize=9)
    axes.set_ylabel("share active", color=DIM, fontsize=9)
    axes.plot([0, 1], [0, 1], color=RULE, lw=1, ls=(0, (4, 4)))
    for key in (REGRESSION, ENSEMBLE):
        color, label, width = STYLE[key]
        scores = by_key(methods, key).scores
        assert scores is not None
        bins = reliability_curve(cases.active, scores[0], bins=BINS)
        forecast, share, low, high = np.transpose(bins)
        axes.plot(forecast, share, color=color, lw=width, marker="o", ms=4, label=label)
        if key == ENSEMBLE:
            axes.vlines(forecast, low, high, color=color, lw=1, alpha=0.6)
    _legend(axes, loc="upper left")

"""Three panels of one evaluation: P(active) by arm, the ROC curve, reliability."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from lesioncast.evaluation.analysis.activity_by_arm import ActivityByArm
from lesioncast.evaluation.analysis.calibration import RELIABILITY_BINS
from lesioncast.evaluation.analysis.performance import POOLED, ActivityGroup
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.baselines.methods import (
    ARM_RATE,
    PRIOR,
    REGRESSION,
    SAMPLED,
    MethodPredictions,
    by_key,
    stated_activity,
)
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.calibration import reliability_curve

INK, DIM, RULE = "#1c2026", "#6b7380", "#d9dde3"


@dataclass(frozen=True)
class LineStyle:
    """Colour, legend and line width of one method."""

    color: str
    label: str
    width: float


STYLE = {
    PRIOR: LineStyle("#c8321e", "prognostic prior", 2.2),
    SAMPLED: LineStyle("#d08a2e", "share of samples", 1.4),
    REGRESSION: LineStyle("#2f6f9f", "regression on image features", 1.4),
    ARM_RATE: LineStyle("#8a929d", "arm rate", 1.4),
}


def evaluation_figure(
    report: EvaluationReport, cases: EvaluationCases, methods: Sequence[MethodPredictions]
) -> Figure:
    """Return the three panels of an evaluation in one figure, with its disclaimers."""
    figure = Figure(figsize=(13.2, 4.7), facecolor="white")
    arms, roc, reliability = figure.subplots(1, 3, gridspec_kw={"wspace": 0.28})
    figure.subplots_adjust(left=0.055, right=0.985, top=0.89, bottom=0.25)
    _activity_by_arm(arms, report.activity_by_arm)
    _roc(roc, cases, methods, report.headline.activity[POOLED])
    _reliability(reliability, cases, methods)
    note = " ".join(report.disclaimers)
    size = f"{report.cases.test} test cases, {report.samples} samples a case."
    figure.text(0.012, 0.025, f"{size} {note}", color=DIM, fontsize=7.5, wrap=True)
    return figure


@dataclass(frozen=True)
class Panel:
    """One panel as a figure of its own, with a text for readers who cannot see it."""

    figure: Figure
    caption: str
    alt: str


def panels(
    report: EvaluationReport, cases: EvaluationCases, methods: Sequence[MethodPredictions]
) -> tuple[Panel, ...]:
    """Return the three panels of `evaluation_figure`, each as a figure of its own."""
    pooled = report.headline.activity[POOLED]
    arms, roc, reliability = (_alone() for _ in range(3))
    _activity_by_arm(arms, report.activity_by_arm)
    _roc(roc, cases, methods, pooled)
    _reliability(reliability, cases, methods)
    return (
        Panel(
            _figure_of(roc),
            "Who becomes active: the share of patients with new lesions that is found (upwards) "
            "against the share of false alarms (to the right), as the threshold falls. The "
            "diagonal is chance.",
            "ROC curves. " + _auc_alt_text(pooled),
        ),
        Panel(
            _figure_of(reliability),
            "Is the probability reliable: the share of patients with new lesions among those with "
            "about the same forecast probability. A reliable forecast lies on the diagonal. The "
            "vertical lines are 95 % Wilson intervals.",
            f"Reliability curves of the {STYLE[stated_activity(pooled.methods)].label} and of the "
            "regression. "
            f"{pooled.positives} of {pooled.cases} cases active.",
        ),
        Panel(
            _figure_of(arms),
            "The same patients under every arm: mean forecast probability, with the 95 % interval "
            "over patients. Open diamonds are other patients, those who received the arm.",
            "Mean P(active) by arm: " + _arms_alt_text(report.activity_by_arm),
        ),
    )


def _alone() -> Axes:
    return Figure(figsize=(4.9, 4.2), layout="constrained").add_subplot()


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _auc_alt_text(pooled: ActivityGroup) -> str:
    areas = {key: pooled.methods[key].auc.value for key in STYLE if key in pooled.methods}
    if None in areas.values():
        return "Undefined: one class only."
    return ", ".join(f"{STYLE[key].label} AUC {area:.3f}" for key, area in areas.items()) + "."


def _arms_alt_text(activity: ActivityByArm | None) -> str:
    if activity is None:
        return "not computed."
    rows = activity.arms.items()
    return ", ".join(f"{arm} {row.p_active.value:.2f}" for arm, row in rows) + "."


def png_bytes(figure: Figure) -> bytes:
    """Return `figure` as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def clean_axes(axes: Axes, title: str) -> None:
    """Give the axes the title, the colours and the grid of every plot, and limits of 0 to 1."""
    axes.set_title(title, loc="left", color=INK, fontsize=11, weight="bold", pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=DIM, labelsize=8.5, length=0)
    axes.grid(color=RULE, lw=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def place_legend(axes: Axes, location: str) -> None:
    """Add the legend of every plot at `location`."""
    axes.legend(loc=location, frameon=False, fontsize=8, labelcolor=INK, handlelength=1.6)


def _activity_by_arm(axes: Axes, activity: ActivityByArm | None) -> None:
    clean_axes(axes, "Same patients, every arm")
    axes.set_ylabel("P(active), mean", color=DIM, fontsize=9)
    if activity is None:
        axes.text(0.5, 0.5, "not computed", ha="center", color=DIM, fontsize=9)
        return
    rows = list(activity.arms.values())
    position = np.arange(len(rows))
    axes.set(xlim=(-0.6, len(rows) - 0.4), xticks=position)
    axes.set_xticklabels([name.capitalize() for name in activity.arms], rotation=30, ha="right")
    style = STYLE[PRIOR if activity.samples is None else SAMPLED]
    label = f"{style.label}, {activity.cases} cases"
    means = np.array([row.p_active.value for row in rows], np.float64)
    axes.bar(position, means, 0.56, color=style.color, alpha=0.85, label=label)
    for x, row in zip(position, rows, strict=True):
        interval = row.p_active.with_interval
        if interval is not None:
            axes.plot([x, x], [interval.low, interval.high], color=INK, lw=1.2)
    training = [row.training_rate for row in rows]
    _diamonds(axes, training, face="white", label="training patients of the arm")
    true = [row.true_rate for row in rows]
    _diamonds(axes, true, face=INK, label="truth, the same cases")
    place_legend(axes, "upper right")


def _diamonds(axes: Axes, rates: Sequence[float | None], *, face: str, label: str) -> None:
    """Mark the rate of each arm that has one."""
    points = [(x, rate) for x, rate in enumerate(rates) if rate is not None]
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, marker="D", s=26, color=face, edgecolor=INK, zorder=3, label=label)


def _roc(
    axes: Axes,
    cases: EvaluationCases,
    methods: Sequence[MethodPredictions],
    pooled: ActivityGroup,
) -> None:
    clean_axes(axes, "Who becomes active")
    axes.set_xlabel("false positive rate", color=DIM, fontsize=9)
    axes.set_ylabel("true positive rate", color=DIM, fontsize=9)
    axes.plot([0, 1], [0, 1], color=RULE, lw=1, ls=(0, (4, 4)))
    if not cases.active.any() or cases.active.all():
        axes.text(0.5, 0.5, "undefined: one class only", ha="center", color=DIM, fontsize=9)
        return
    for key, style in STYLE.items():
        if key not in pooled.methods:
            continue
        scores = by_key(methods, key).scores
        assert scores is not None
        false, true, _ = roc_curve(cases.active, scores[0])
        label = f"{style.label}, AUC {pooled.methods[key].auc.value:.3f}"
        axes.plot(false, true, color=style.color, lw=style.width, label=label)
    place_legend(axes, "lower right")


def _reliability(axes: Axes, cases: EvaluationCases, methods: Sequence[MethodPredictions]) -> None:
    clean_axes(axes, "Is the probability reliable")
    axes.set_xlabel("forecast P(active)", color=DIM, fontsize=9)
    axes.set_ylabel("share active", color=DIM, fontsize=9)
    axes.plot([0, 1], [0, 1], color=RULE, lw=1, ls=(0, (4, 4)))
    stated = stated_activity([method.key for method in methods])
    for key in (REGRESSION, stated):
        style, scores = STYLE[key], by_key(methods, key).scores
        assert scores is not None
        bins = reliability_curve(cases.active, scores[0], bins=RELIABILITY_BINS)
        forecast, share, low, high = np.transpose(bins)
        axes.plot(
            forecast, share, color=style.color, lw=style.width, marker="o", ms=4, label=style.label
        )
        if key == stated:
            axes.vlines(forecast, low, high, color=style.color, lw=1, alpha=0.6)
    place_legend(axes, "upper left")

"""The decision curve as a plot."""

from matplotlib.figure import Figure

from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.analysis.validity.decision_curve import DecisionCurve
from lesioncast.evaluation.reporting.figures import (
    DIM,
    INK,
    STYLE,
    Panel,
    clean_axes,
    place_legend,
)
from lesioncast.evaluation.reporting.markdown.subgroups import NO_CLINICAL_USE
from lesioncast.forecasting.disclaimers import SIMULATED_SUBJECTS

LAST_THRESHOLD = 0.8  # beyond it hardly a patient is treated by any method


def decision_panel(report: EvaluationReport) -> Panel:
    """Return the net benefit of acting on P(active), by threshold."""
    curve = report.decision_curve
    simulated = f" {SIMULATED_SUBJECTS}" if SIMULATED_SUBJECTS in report.disclaimers else ""
    return Panel(
        _figure(curve),
        "Decision curve: net benefit of acting on the forecast, by the probability from which on "
        "one acts. A forecast helps where its line is above both acting on all and acting on none. "
        f"{NO_CLINICAL_USE}{simulated}",
        f"Net benefit by threshold, {curve.positives} of {curve.cases} cases active. "
        f"{_alt_text(curve)}",
    )


def _figure(curve: DecisionCurve) -> Figure:
    figure = Figure(figsize=(4.9, 4.2), layout="constrained")
    axes = figure.add_subplot()
    clean_axes(axes, "Net benefit")
    axes.set_xlabel("threshold of P(active)", color=DIM, fontsize=9)
    axes.set_ylabel("net benefit per patient", color=DIM, fontsize=9)
    prevalence = curve.positives / curve.cases
    margin = 0.15 * max(prevalence, 0.05)
    axes.set(xlim=(0, LAST_THRESHOLD), ylim=(-margin, prevalence + 3 * margin))
    axes.plot(
        curve.thresholds, curve.treat_all, color=DIM, lw=1.2, ls=(0, (4, 3)), label="act on all"
    )
    axes.plot([0, 1], [0, 0], color=INK, lw=1.2, ls=(0, (1, 2)), label="act on none")
    for key, style in STYLE.items():
        if key in curve.methods:
            axes.plot(
                curve.thresholds,
                curve.methods[key].curve,
                color=style.color,
                lw=style.width,
                label=style.label,
            )
    place_legend(axes, "upper right")
    return figure


def _alt_text(curve: DecisionCurve) -> str:
    parts = [
        f"{style.label} {value.net_benefit.value:.3f} at a threshold of {value.threshold:.0%}"
        for key, style in STYLE.items()
        if key in curve.methods
        for value in curve.methods[key].at[1:2]
    ]
    return f"{', '.join(parts)}." if parts else ""

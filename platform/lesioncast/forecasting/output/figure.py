"""Draw the forecast of one subject under every arm, in the manner of the paper's figure 3."""

import math
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.patheffects import withStroke
from scipy import ndimage

from lesioncast.arms import PAPER_ARMS
from lesioncast.forecasting.output.display import (
    View,
    choose_slices,
    crop,
    intensity_window,
    to_display,
)
from lesioncast.forecasting.output.summary import (
    ActiveProbability,
    ArmSummary,
    ForecastSummary,
    MapKind,
)
from lesioncast.forecasting.output.typicality import typicality_line
from lesioncast.imaging.channels import CURRENT, OUTCOME
from lesioncast.markdown import format_probability
from lesioncast.warning_list import severe
from storage.atomic import atomic_write
from storage.radiological import AXIAL, CONVENTION

BACKGROUND = "#0c0e12"
TEXT = "#f2f3f5"
DIM = "#9aa1ab"
TRACK = "#23272f"
OBSERVED = "#3fd0ff"
ALARM = "#ffb020"
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#5c0a12", "#b3190f", "#ee5a1c", "#fca42d", "#ffe36b", "#fffbe0"]
)
LEAST_SCALE = 0.2
FINE_SCALES = (0.01, 0.02, 0.05)
FOOTER_WIDTH = 145  # characters that fit beside the scale bar
PANEL_INCHES = 1.95
HEADER_INCHES, STRIP_INCHES, FOOTER_INCHES, LINE_INCHES = 0.95, 1.15, 1.0, 0.17
# Heights of the lines above a column, as shares of the strip.
NAME_ROW, NOTE_ROW, ACTIVE_ROW, CALIBRATED_ROW, COUNT_ROW = 0.87, 0.66, 0.46, 0.27, 0.08
GREYS = LinearSegmentedColormap.from_list("greys", [BACKGROUND, "#ffffff"])
WORDS = {"NE": "no proven", "LE": "low", "MiE": "mild", "MoE": "moderate", "HE": "high"}
EFFICACY = {
    arm.name: f"{WORDS[arm.efficacy]} efficacy" for arm in PAPER_ARMS if arm.efficacy in WORDS
}


def forecast_figure(view: View, summary: ForecastSummary, *, slices: int) -> Figure:
    """Draw the current FLAIR, then one column for each arm with the lesion probability in colour.

    All columns show the same slices on one colour scale. The observed lesions are outlined under
    the arm received, because they were observed under that arm alone.
    """
    shown = choose_slices(view, slices)
    window_hw = crop(view, shown)
    alarms = _alarm_lines(summary)
    footer = [*alarms, *_footer(summary, _outline_legend(view, shown, summary))]
    room = max(FOOTER_INCHES, 0.35 + LINE_INCHES * len(footer))
    columns = 1 + len(view.probability)
    figure, grid = _canvas(view, window_hw, rows=len(shown), columns=columns, room=room)
    scale, grey = (
        Normalize(0, _colour_scale_maximum(view, shown, summary.map)),
        Normalize(*intensity_window(view)),
    )
    _head_column(figure.add_subplot(grid[0, 0]), summary)
    for column, arm in enumerate(view.probability, 1):
        _arm_column(figure.add_subplot(grid[0, column]), arm, summary.arms[arm])
    for row, index in enumerate(shown, 1):
        flair = to_display(view.flair[index][window_hw], view.spacing, order=3)
        draw_height(draw_slice(figure, grid[row, 0], flair, grey), view.heights[index])
        for column, arm in enumerate(view.probability, 1):
            axes = draw_slice(figure, grid[row, column], flair, grey)
            draw_heat(axes, view.probability[arm][index][window_hw], view, scale)
            if summary.arms[arm].received:
                draw_outline(axes, view, index, window_hw)
    _draw_text(figure, summary, footer, room=room, alarms=len(alarms))
    share = "share of samples with" if summary.map == "share of samples" else "probability of"
    _scale_bar(figure, scale, title=f"{share} a lesion here", room=room)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG in one step."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=160, facecolor=figure.get_facecolor())
    atomic_write(path, png.getvalue())


def _canvas(
    view: View, window_hw: tuple[slice, slice], *, rows: int, columns: int, room: float
) -> tuple[Figure, GridSpec]:
    height, width = (
        (part.stop - part.start) * size
        for part, size in zip(window_hw, view.spacing[1:], strict=True)
    )
    panel = PANEL_INCHES * height / width
    tall = HEADER_INCHES + STRIP_INCHES + rows * panel + room
    figure = Figure(figsize=(columns * PANEL_INCHES + 0.5, tall), facecolor=BACKGROUND)
    grid = GridSpec(
        rows + 1,
        columns,
        figure,
        height_ratios=[STRIP_INCHES, *[panel] * rows],
        left=0.25 / figure.get_figwidth(),
        right=1 - 0.25 / figure.get_figwidth(),
        top=1 - HEADER_INCHES / tall,
        bottom=room / tall,
        wspace=0.03,
        hspace=0.02,
    )
    return figure, grid


def _colour_scale_maximum(view: View, shown: list[int], kind: MapKind) -> float:
    """Return the highest probability shown, rounded up to the next 10 %.

    A share of few samples is not drawn on a finer scale than LEAST_SCALE. A map in closed form has
    no such steps, and is often below 10 %: its scale is rounded up to one of FINE_SCALES first.
    """
    highest = max(float(probability[shown].max()) for probability in view.probability.values())
    if kind == "closed form" and highest <= FINE_SCALES[-1]:
        return next(scale for scale in FINE_SCALES if highest <= scale)
    least = LEAST_SCALE if kind == "share of samples" else 0.0
    return min(1.0, max(least, math.ceil(highest * 10) / 10))


def _bare(axes: Axes) -> None:
    axes.set_axis_off()
    axes.set_facecolor(BACKGROUND)


def _head_column(axes: Axes, summary: ForecastSummary) -> None:
    seen = CURRENT in summary.sessions
    title = f"FLAIR, {summary.visits.label(CURRENT)}"
    note = "the last scan before the forecast" if seen else "not shown to the model"
    _bare(axes)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0.03, NAME_ROW, title, color=TEXT, fontsize=11, weight="bold", va="center")
    axes.text(0.03, NOTE_ROW, note, color=DIM, fontsize=8, va="center")
    labels = {ACTIVE_ROW: "P(active)", COUNT_ROW: "lesions expected"}
    if summary.calibration is not None:
        labels[CALIBRATED_ROW] = "recalibrated"
    for row, label in labels.items():
        axes.text(0.97, row, label, color=DIM, fontsize=8, va="center", ha="right")


def _arm_column(axes: Axes, arm: str, summary: ArmSummary) -> None:
    """Write an arm's name, its P(active) as a number and a bar, and its expected lesion count."""
    _bare(axes)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    p_active, count, calibrated = summary.p_active, summary.count, summary.calibrated
    axes.text(0.03, NAME_ROW, arm.capitalize(), color=TEXT, fontsize=11, weight="bold", va="center")
    received = ["received"] if summary.received else []
    note = " · ".join([*filter(None, [EFFICACY.get(arm)]), *received])
    color = OBSERVED if summary.received else DIM
    axes.text(0.03, NOTE_ROW, note, color=color, fontsize=8, va="center")
    axes.text(
        0.03,
        ACTIVE_ROW,
        format_probability(p_active.value, exact=p_active.exact),
        color=TEXT,
        fontsize=10,
        weight="bold",
        va="center",
    )
    _bar(axes, p_active)
    if calibrated is not None and calibrated.p_active is not None:
        recalibrated = format_probability(calibrated.p_active, exact=True)
        axes.text(0.03, CALIBRATED_ROW, recalibrated, color=TEXT, fontsize=10, va="center")
    expected = count.mean if count.expected is None else count.expected
    axes.text(0.03, COUNT_ROW, f"{expected:.1f}", color=TEXT, fontsize=10, va="center")
    axes.text(0.32, COUNT_ROW, count_range(summary), color=DIM, fontsize=8, va="center")


def count_range(summary: ArmSummary) -> str:
    """Return the conformal interval of the number of lesions, or else the quantiles of samples."""
    interval = None if summary.calibrated is None else summary.calibrated.reported_interval
    if interval is not None:
        return f"{interval.low}–{interval.high}, {interval.level:.0%} interval"
    quantiles = summary.count.sample_quantiles
    return f"{quantiles['0.05']}–{quantiles['0.95']} in 90% of samples"


def _bar(axes: Axes, p_active: ActiveProbability) -> None:
    left, length, y = 0.32, 0.63, ACTIVE_ROW
    axes.plot([left, left + length], [y, y], color=TRACK, lw=5, solid_capstyle="round")
    end = left + length * p_active.value
    if p_active.value > 0:
        axes.plot([left, end], [y, y], color=HEAT(0.55), lw=5, solid_capstyle="round")
    if p_active.low is not None and p_active.high is not None:
        interval = [left + length * end for end in (p_active.low, p_active.high)]
        axes.plot(interval, [y, y], color=TEXT, lw=1.1)
    axes.plot(end, y, "|", color=TEXT, ms=7, mew=1.4)


def draw_slice(
    figure: Figure, place: SubplotSpec, flair: npt.NDArray[np.float32], grey: Normalize
) -> Axes:
    """Draw a FLAIR slice in grey with its sides marked; `flair` is the result of `to_display`."""
    axes = figure.add_subplot(place)
    _bare(axes)
    axes.imshow(flair, cmap=GREYS, norm=grey, interpolation="bilinear")
    draw_orientation(axes)
    return axes


def draw_heat(axes: Axes, plane: npt.NDArray[np.float32], view: View, scale: Normalize) -> None:
    """Draw the probability in heat colours, transparent where no sample has a lesion."""
    smooth = np.clip(to_display(plane, view.spacing, order=3), 0, 1)
    share = np.clip(np.asarray(scale(smooth), np.float32), 0, 1)
    colours = HEAT(share)
    colours[..., 3] = 0.92 * np.clip((share - 0.04) / 0.2, 0, 1)
    axes.imshow(colours, interpolation="bilinear")


def draw_outline(axes: Axes, view: View, index: int, window_hw: tuple[slice, slice]) -> None:
    """Outline the observed lesions of slice `index`, if there are any."""
    if view.observed is None or not view.observed[index][window_hw].any():
        return
    plane = to_display(view.observed[index][window_hw].astype(np.float32), view.spacing, order=1)
    smooth = ndimage.gaussian_filter(plane, 1.0)  # smooth outlines; a single voxel stays visible
    axes.contour(smooth, levels=[0.4 * smooth.max()], colors=OBSERVED, linewidths=1.1)


def draw_orientation(axes: Axes) -> None:
    """Write the letter of the patient's side at each edge of a slice."""
    halo = [withStroke(linewidth=2, foreground=BACKGROUND)]
    for x, y, letter in (
        (0.03, 0.5, AXIAL.left),
        (0.97, 0.5, AXIAL.right),
        (0.5, 0.965, AXIAL.top),
        (0.5, 0.035, AXIAL.bottom),
    ):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            color=TEXT,
            fontsize=8,
            ha="center",
            va="center",
            path_effects=halo,
        )


def draw_height(axes: Axes, height: float) -> None:
    """Write the position of the slice, in mm."""
    axes.text(
        0.02,
        0.02,
        f"z {height:+.0f} mm",
        transform=axes.transAxes,
        fontsize=8,
        color=DIM,
        va="bottom",
    )


def _outline_legend(view: View, shown: list[int], summary: ForecastSummary) -> str:
    """Return the legend of the outline, or nothing if there is no outcome to outline."""
    if view.observed is None or summary.received_arm is None:
        return ""
    number, outcome = summary.observed_lesions, summary.visits.label(OUTCOME)
    if not number:
        return f"No lesion was observed at {outcome}. "
    location = "" if view.observed[shown].any() else ", none in these slices"
    return f"Outline: lesions observed at {outcome} ({number} in the slab{location}). "


def _draw_text(
    figure: Figure, summary: ForecastSummary, footer: Sequence[str], *, room: float, alarms: int
) -> None:
    """Write title, subtitle and footer, whose first `alarms` lines are severe warnings."""
    tall, wide = figure.get_figheight(), figure.get_figwidth()
    left = 0.3 / wide
    figure.text(
        left,
        1 - 0.36 / tall,
        f"{summary.subject}   New and enlarging T2 lesions forecast for "
        f"{summary.visits.label(OUTCOME)}, by treatment",
        color=TEXT,
        fontsize=14,
        weight="bold",
        va="center",
    )
    figure.text(left, 1 - 0.68 / tall, _subtitle(summary), color=DIM, fontsize=9.5, va="center")
    for row, line in enumerate(footer):
        height = (room - 0.26 - LINE_INCHES * row) / tall
        color = ALARM if row < alarms else DIM
        figure.text(left, height, line, color=color, fontsize=8, va="center")


def _subtitle(summary: ForecastSummary) -> str:
    received = summary.received_arm
    return (
        f"{summary.samples} samples an arm on the same seeds · "
        f"{f'received {received}' if received else 'arm received not known'} · "
        "slices with the highest forecast probability, the same in every column"
    )


def _alarm_lines(summary: ForecastSummary) -> list[str]:
    """Return the severe warnings, wrapped."""
    return [line for text in severe(summary.warnings) for line in textwrap.wrap(text, FOOTER_WIDTH)]


def _footer(summary: ForecastSummary, outline: str) -> list[str]:
    exact = all(arm.p_active.exact for arm in summary.arms.values())
    first = "PREDICTED, NOT OBSERVED. Research use only; not a medical device. " + " ".join(
        (typicality_line(summary.typicality), *summary.notes)
    )
    return [
        *textwrap.wrap(first, FOOTER_WIDTH),
        *textwrap.wrap(_calibration(summary), FOOTER_WIDTH),
        "Columns other than the arm received are counterfactual: arm and trial may be confounded. "
        f"Bundle {summary.bundle[:12]}.",
        f"{outline}{CONVENTION} "
        + (
            f"P(active) and lesions expected are exact{_of_samples(summary)}."
            if exact
            else "White whisker: 95% Wilson interval."
        ),
    ]


def _calibration(summary: ForecastSummary) -> str:
    """Return what the intervals and the recalibrated P(active) are learned on, if there are any."""
    calibration = summary.calibration
    if calibration is None:
        return ""
    simulated = ", simulated" if calibration.simulated else ""
    return (
        f"Interval of the number of lesions and recalibrated P(active): learned on "
        f"{calibration.cohort}{simulated}; {calibration.cases} had these images "
        f"({calibration.images})."
    )


def _of_samples(summary: ForecastSummary) -> str:
    """Return which parts of the figure are of samples."""
    parts = ["the maps"] * (summary.map == "share of samples")
    parts += ["the range"] * (summary.calibration is None)
    if not parts:
        return ""
    return f"; {' and '.join(parts)} {'are' if parts[0] == 'the maps' else 'is'} of samples"


def _scale_bar(figure: Figure, scale: Normalize, *, title: str, room: float) -> None:
    tall, wide = figure.get_figheight(), figure.get_figwidth()
    axes = figure.add_axes((1 - 3.1 / wide, (room - 0.38) / tall, 2.8 / wide, 0.09 / tall))
    bar = figure.colorbar(ScalarMappable(scale, HEAT), cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    top = float(scale.vmax or 1)
    bar.set_ticks([0, top / 2, top])
    bar.set_ticklabels([f"{100 * tick:g}%" for tick in (0, top / 2, top)])
    axes.tick_params(colors=DIM, labelsize=8, length=0, pad=3)
    axes.set_title(title, color=DIM, fontsize=8, pad=4)

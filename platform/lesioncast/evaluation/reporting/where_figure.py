"""Draw every method's map of one patient side by side, with the observed lesions outlined."""

import io
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from lesioncast.arrays import Float32s
from lesioncast.evaluation.reporting.html import Picture
from lesioncast.evaluation.where.measurements import (
    ATLAS,
    EXACT,
    MAP_LABELS,
    NETWORKS,
    RINGS,
    SAMPLES,
    SPATIAL_PRIOR,
    CaseMaps,
    WhereMeasurements,
)
from lesioncast.evaluation.where.run import MEDIAN, case_at
from lesioncast.forecasting.output.display import View, crop, intensity_window, to_display
from lesioncast.forecasting.output.figure import (
    BACKGROUND,
    DIM,
    HEAT,
    TEXT,
    draw_height,
    draw_outline,
    draw_slice,
)
from lesioncast.imaging.channels import CURRENT, MASKS, OUTCOME, SESSIONS
from storage import Store

SHOWN = (ATLAS, RINGS, SPATIAL_PRIOR, NETWORKS, SAMPLES, EXACT)
PANEL_INCHES = 2.6
TITLE_INCHES, FOOT_INCHES = 0.32, 0.75
# Colours run from the density of the even brain upwards; below it the FLAIR shows through.
LEAST, MOST = 1.0, 64.0
RULER_MM = 50.0


def median_picture(store: Store, where: WhereMeasurements) -> Picture | None:
    """Return the figure of the case with the median volume; None if no case has new lesions."""
    row = case_at(where.lesion_voxels, MEDIAN)
    case = None if row is None else where.cases[row]
    if case is None or case.figure is None or not case.figure.maps:
        return None
    return map_picture(store, case.case, case.figure)


def map_picture(store: Store, index: int, maps: CaseMaps) -> Picture:
    """Show the maps of one case in the slice with most observed new lesion."""
    case, view = store.cases[index], map_view(store, index, maps)
    assert view.observed is not None
    shown = int(np.argmax(view.observed.sum(axis=(1, 2))))
    current, outcome = (store.spec.visits.label(session) for session in (CURRENT, OUTCOME))
    names = [MAP_LABELS[key] for key in SHOWN if key in maps.maps]
    content = io.BytesIO()
    figure = maps_figure(view, shown, title=f"FLAIR at {current}")
    figure.savefig(content, format="png", dpi=150, facecolor=BACKGROUND)
    return Picture(
        png=content.getvalue(),
        alt=(
            f"{case.subject}, axial slice at z {view.heights[shown]:+.0f} mm: FLAIR at {current}, "
            f"and on it in colour the maps {', '.join(names)}, with the new lesions of {outcome} "
            "outlined."
        ),
        caption=(
            f"{case.subject}, the test patient with the median volume of new lesions, in the slice "
            "with most of it. Colour: how many times as likely as at an average voxel of the "
            f"brain a new lesion is by {outcome}, given that there is one; no colour: less than "
            "once. "
            f"Blue outline: new lesions observed at {outcome}. z is the height in mm."
        ),
    )


def map_view(store: Store, index: int, maps: CaseMaps) -> View:
    """Return the current FLAIR of a case, its maps and its observed new lesions on the slab."""
    case, arrays = store.cases[index], store.read(index)
    observed = arrays.masks[SESSIONS.index(OUTCOME), MASKS.index("net2")].astype(bool)
    affine = np.array(case.grid.slab_affine)
    return View(
        flair=arrays.flair[SESSIONS.index(CURRENT)].astype(np.float32),
        probability=maps.maps,
        observed=observed,
        spacing=store.spec.spacing,
        heights=affine[2, 3] + affine[2, 2] * np.arange(observed.shape[0]),
    )


def maps_figure(view: View, index: int, *, title: str) -> Figure:
    """Draw slice `index`: the FLAIR alone, then each map on it, on one colour scale."""
    keys = [key for key in SHOWN if key in view.probability]
    columns = 3 if len(keys) < 6 else 4
    rows = math.ceil((len(keys) + 1) / columns)
    window = crop(view, [index])
    height, width = (
        (part.stop - part.start) * size for part, size in zip(window, view.spacing[1:], strict=True)
    )
    panel = PANEL_INCHES * height / width
    tall = rows * (panel + TITLE_INCHES) + FOOT_INCHES
    figure = Figure(figsize=(columns * PANEL_INCHES, tall), facecolor=BACKGROUND)
    grid = GridSpec(
        rows, columns, figure, left=0, right=1, top=1 - TITLE_INCHES / tall,
        bottom=FOOT_INCHES / tall, wspace=0.02, hspace=TITLE_INCHES / panel,
    )  # fmt: skip
    grey, scale = Normalize(*intensity_window(view)), LogNorm(LEAST, MOST)
    flair = to_display(view.flair[index][window], view.spacing, order=3)
    for place, key in enumerate([None, *keys]):
        axes = draw_slice(figure, grid[place // columns, place % columns], flair, grey)
        axes.set_title(title if key is None else MAP_LABELS[key], color=TEXT, fontsize=9, pad=4)
        if key is None:
            draw_height(axes, view.heights[index])
            draw_ruler(axes, flair.shape[1] / width)
        else:
            draw_density(axes, view.probability[key][index][window], view, scale)
        draw_outline(axes, view, index, window)
    draw_scale_bar(figure, scale, left=0.3, bottom=0.36, width=0.4)
    return figure


def draw_density(axes: Axes, plane: Float32s, view: View, scale: LogNorm) -> None:
    """Draw a density relative to the even brain; voxels below 1 stay clear."""
    smooth = to_display(np.maximum(plane, 1e-3), view.spacing, order=1)
    share = np.clip(np.asarray(scale(smooth), np.float32), 0, 1)
    colours = HEAT(share)
    colours[..., 3] = 0.75 * (smooth > LEAST)
    axes.imshow(colours, interpolation="nearest")


def draw_ruler(axes: Axes, pixels_per_mm: float) -> None:
    """Draw a bar of RULER_MM at the lower right."""
    right, low = axes.get_xlim()[1] - 4, axes.get_ylim()[0] - 5
    left = right - RULER_MM * pixels_per_mm
    axes.plot([left, right], [low, low], color=TEXT, lw=2)
    axes.text(
        (left + right) / 2, low - 3, f"{RULER_MM:.0f} mm", color=TEXT, fontsize=7, ha="center"
    )


def draw_scale_bar(
    figure: Figure, scale: LogNorm, *, left: float, bottom: float, width: float
) -> None:
    """Draw the colour bar of maps that are relative to an average voxel of the brain.

    `left` and `width` are shares of the figure's width, `bottom` is in inches.
    """
    tall = figure.get_figheight()
    axes = figure.add_axes((left, bottom / tall, width, 0.1 / tall))
    bar = figure.colorbar(ScalarMappable(scale, HEAT), cax=axes, orientation="horizontal")
    ticks = [1, 2, 4, 8, 16, 32, 64]
    bar.set_ticks(ticks, labels=[f"{tick}x" for tick in ticks])
    bar.minorticks_off()
    axes.tick_params(colors=DIM, labelsize=8, length=0)
    axes.set_title(
        "new lesion, relative to an average voxel of the brain", color=DIM, fontsize=8, pad=4
    )

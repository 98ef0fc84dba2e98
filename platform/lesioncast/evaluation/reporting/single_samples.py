"""Single samples beside the observed outcome, in the manner of the paper's figure 2 (left)."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lesioncast.arrays import Bools
from lesioncast.evaluation.reporting.html import Picture
from lesioncast.forecasting.output.display import View, crop, intensity_window, to_display
from lesioncast.forecasting.output.figure import (
    BACKGROUND,
    OBSERVED,
    TEXT,
    draw_height,
    draw_slice,
)

PANEL_INCHES = 2.0
TITLE_INCHES = 0.3
LEGEND_INCHES = 0.35
SAMPLED = "#ffa62b"
SHOWN = 4  # samples, the first of the ensemble


def single_samples(view: View, masks: Bools, index: int, *, subject: str) -> Picture:
    """Show the observed lesions of slice `index`, and beside them those of single samples.

    `masks` [k, s, h, w] are the samples, of which the first `SHOWN` are drawn, whatever they show.
    """
    assert view.observed is not None
    shown = masks[:SHOWN]
    height = f"z {view.heights[index]:+.0f} mm"
    volumes = [_volume(mask[index], view) for mask in shown]
    described = ", ".join(f"{volume:.0f}" for volume in volumes)
    observed = _volume(view.observed[index], view)
    return Picture(
        png=_png(view, [view.observed, *shown], index),
        alt=(
            f"{subject}, axial slice at {height}: the observed new lesions, {observed:.0f} mm3 in "
            f"this slice, and {len(shown)} single samples with {described} mm3"
        ),
        caption=(
            f"{height}. Left: observed new lesions ({observed:.0f} mm3 in this slice). Then the "
            f"first {len(shown)} samples, one by one ({described} mm3)."
        ),
    )


def _volume(plane: Bools, view: View) -> float:
    """Return the volume of the lesions in a slice [h, w], in mm3."""
    return float(plane.sum() * np.prod(view.spacing))


def _png(view: View, masks: Sequence[Bools], index: int) -> bytes:
    """Draw a panel for each mask [s, h, w]: the first is the observed one."""
    window_hw = crop(view, [index])
    height_mm, width_mm = (
        (part.stop - part.start) * size
        for part, size in zip(window_hw, view.spacing[1:], strict=True)
    )
    panel = PANEL_INCHES * height_mm / width_mm
    tall = TITLE_INCHES + panel + LEGEND_INCHES
    figure = Figure(figsize=(len(masks) * PANEL_INCHES, tall), facecolor=BACKGROUND)
    grid = figure.add_gridspec(
        1,
        len(masks),
        left=0,
        right=1,
        top=1 - TITLE_INCHES / tall,
        bottom=LEGEND_INCHES / tall,
        wspace=0.01,
    )
    flair = to_display(view.flair[index][window_hw], view.spacing, order=3)
    grey = Normalize(*intensity_window(view))
    for column, mask in enumerate(masks):
        axes = draw_slice(figure, grid[0, column], flair, grey)
        colour = OBSERVED if column == 0 else SAMPLED
        fill_lesions(axes, mask[index][window_hw], view, colour)
        title = f"sample {column}" if column else "observed"
        axes.set_title(title, color=TEXT, fontsize=9, pad=3)
        if column == 0:
            draw_height(axes, view.heights[index])
    figure.legend(
        handles=[
            Patch(color=OBSERVED, label="observed new lesions"),
            Patch(color=SAMPLED, label="lesions of one sample"),
        ],
        loc="lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
        labelcolor=TEXT,
    )
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, facecolor=BACKGROUND)
    return content.getvalue()


def fill_lesions(
    axes: Axes, plane: Bools, view: View, colour: str, *, opacity: float = 0.85
) -> None:
    """Fill the lesions of a slice [h, w] with one colour; voxels keep their edges."""
    shown = to_display(plane.astype(np.float32), view.spacing, order=0) > 0.5
    colours = np.zeros((*shown.shape, 4), np.float32)
    colours[..., :3] = to_rgb(colour)
    colours[..., 3] = opacity * shown
    axes.imshow(colours, interpolation="nearest")

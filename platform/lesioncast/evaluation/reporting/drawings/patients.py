"""Draw the maps of two patients, a row each: atlas, prior, final map, samples, and the outcome."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import ndimage

from lesioncast.arrays import Bools, Mask
from lesioncast.evaluation.reporting.html import Picture
from lesioncast.evaluation.reporting.single_samples import SAMPLED, fill_lesions
from lesioncast.evaluation.reporting.where_figure import (
    LEAST,
    MOST,
    draw_density,
    draw_ruler,
    draw_scale_bar,
    map_view,
)
from lesioncast.evaluation.where.case_scores import masks_of
from lesioncast.evaluation.where.measurements import (
    ATLAS,
    NETWORKS,
    SPATIAL_PRIOR,
    CaseWhere,
    WhereMeasurements,
)
from lesioncast.evaluation.where.rings import older_lesions
from lesioncast.evaluation.where.run import FEW, MANY, case_at
from lesioncast.forecasting.output.display import View, crop, intensity_window, to_display
from lesioncast.forecasting.output.figure import (
    BACKGROUND,
    OBSERVED,
    TEXT,
    draw_height,
    draw_slice,
)
from lesioncast.imaging.channels import CURRENT, OUTCOME
from lesioncast.imaging.lesions import lesion_count
from storage import Store

SAMPLES = 3
TITLES = {ATLAS: "atlas", SPATIAL_PRIOR: "spatial prior", NETWORKS: "final map"}
OLDER, BRAIN = "#7ee08a", "#5f6772"
PANEL_INCHES = 2.1
HEAD_INCHES, ROW_INCHES, TITLE_INCHES, FOOT_INCHES = 0.55, 0.3, 0.22, 0.95
FAINT = 0.4


@dataclass(frozen=True)
class Patient:
    """A patient of the figure: images, masks [s, h, w] each, and the slice that is shown."""

    title: str
    view: View
    older: Mask
    brain: Mask
    samples: Bools
    index: int

    @property
    def observed(self) -> Mask:
        """Return the observed new lesions."""
        assert self.view.observed is not None
        return self.view.observed


def patients_picture(store: Store, where: WhereMeasurements) -> Picture | None:
    """Show a patient with few and one with many new lesions; None where no map was kept for that.

    Maps are kept for bundles with a spatial prior.
    """
    rows = [case_at(where.lesion_voxels, share) for share in (FEW, MANY)]
    cases = {
        words: where.cases[row]
        for words, row in zip(("few", "many"), rows, strict=True)
        if row is not None
    }
    kept = [case.figure for case in cases.values()]
    if not kept or any(maps is None or SPATIAL_PRIOR not in maps.maps for maps in kept):
        return None
    patients = [patient_of(store, case, words) for words, case in cases.items()]
    kind = "Simulated patients" if store.table.trial.simulated else "Patients"
    current, outcome = (store.spec.visits.label(session) for session in (CURRENT, OUTCOME))
    content = io.BytesIO()
    figure = patients_figure(
        patients, title=f"{kind}: where will new lesions be at {outcome}?", outcome=outcome
    )
    figure.savefig(content, format="png", dpi=150, facecolor=BACKGROUND)
    described = " ".join(one.title for one in patients)
    return Picture(
        png=content.getvalue(),
        alt=(
            f"{kind} in one axial slice each, on FLAIR at {current}. {described} From left to "
            "right the atlas, the map of the spatial prior, the final map, three samples and the "
            f"new lesions observed at {outcome}."
        ),
        caption=(
            f"{kind}, a row each: of the test patients with new lesions in the order of their "
            f"volume, those at {FEW:.0%} and at {MANY:.0%}, in the slice with most of it. Colour: "
            "how many times as likely as at an average voxel of the brain a new lesion is by "
            f"{outcome}, given that there is one. Faint: lesions of the other slices. Green: "
            "lesions of earlier sessions. A sample is one possible future. It has no lesion as "
            "often as P(active) says, and seldom meets the observed places."
        ),
    )


def patient_of(store: Store, measured: CaseWhere, words: str) -> Patient:
    """Return what the figure shows of a case, whose maps were kept."""
    maps, images = measured.figure, store.read(measured.case)
    assert maps is not None
    view = map_view(store, measured.case, maps)
    case, observed = store.cases[measured.case], view.observed
    assert observed is not None
    lesions = lesion_count(observed, view.spacing, opening=False)
    volume = float(observed.sum() * np.prod(view.spacing))
    return Patient(
        title=(
            f"{case.subject}, {case.arm}. Forecast: {maps.p_active:.0%} for any new lesion. "
            f"Observed: {words} ({lesions}, {volume:.0f} mm3)."
        ),
        view=view,
        older=older_lesions(images),
        brain=maps.brain,
        samples=masks_of(maps.samples[:SAMPLES], observed.shape),
        index=int(np.argmax(observed.sum(axis=(1, 2)))),
    )


def patients_figure(patients: Sequence[Patient], *, title: str, outcome: str) -> Figure:
    """Draw a row for each patient on one logarithmic colour scale."""
    columns = len(TITLES) + max(len(one.samples) for one in patients) + 1
    panels = [_panel_inches(one) for one in patients]
    tall = HEAD_INCHES + sum(panels) + len(patients) * (ROW_INCHES + TITLE_INCHES) + FOOT_INCHES
    figure = Figure(figsize=(columns * PANEL_INCHES, tall), facecolor=BACKGROUND)
    scale = LogNorm(LEAST, MOST)
    top = tall - HEAD_INCHES
    left = 0.1 / figure.get_figwidth()
    figure.text(left, 1 - 0.3 / tall, title, color=TEXT, fontsize=14, weight="bold", va="center")
    for patient, panel in zip(patients, panels, strict=True):
        figure.text(left, (top - 0.2) / tall, patient.title, color=TEXT, fontsize=10.5, va="center")
        top -= ROW_INCHES + TITLE_INCHES
        grid = figure.add_gridspec(
            1, columns, left=0, right=1, top=top / tall, bottom=(top - panel) / tall, wspace=0.015
        )
        _draw_row(figure, [grid[0, column] for column in range(columns)], patient, scale, outcome)
        top -= panel
    _legend(figure, scale, outcome)
    return figure


def _panel_inches(patient: Patient) -> float:
    """Return the height of a patient's panels."""
    window = crop(patient.view, [patient.index])
    height, width = (
        float((part.stop - part.start) * size)
        for part, size in zip(window, patient.view.spacing[1:], strict=True)
    )
    return float(PANEL_INCHES * height / width)


def _draw_row(
    figure: Figure, places: Sequence[SubplotSpec], patient: Patient, scale: LogNorm, outcome: str
) -> None:
    """Draw the panels of a patient from left to right."""
    view, index = patient.view, patient.index
    window = crop(view, [index])
    flair = to_display(view.flair[index][window], view.spacing, order=3)
    grey = Normalize(*intensity_window(view))
    panels = [draw_slice(figure, place, flair, grey) for place in places]
    for axes in panels:
        _outline(axes, patient.brain[index][window], view, color=BRAIN, linewidths=0.8)
        _outline(axes, patient.older[index][window], view, color=OLDER, linewidths=0.9)
    for axes, (key, name) in zip(panels, TITLES.items(), strict=False):
        draw_density(axes, view.probability[key][index][window], view, scale)
        _outline(axes, patient.older[index][window], view, color=OLDER, linewidths=0.9)
        _title(axes, name)
    masks = [*patient.samples, patient.observed]
    names = [f"sample {number}" for number in range(1, len(masks))]
    for axes, mask, name in zip(
        panels[len(TITLES) :], masks, [*names, f"observed, {outcome}"], strict=True
    ):
        colour = OBSERVED if mask is masks[-1] else SAMPLED
        _draw_mask(axes, mask, patient, colour)
        _title(axes, f"{name}: {_lesions_in_words(mask, patient)}")
    draw_height(panels[0], view.heights[index])
    draw_ruler(panels[0], flair.shape[1] / ((window[1].stop - window[1].start) * view.spacing[2]))


def _draw_mask(axes: Axes, mask: Mask, patient: Patient, colour: str) -> None:
    """Fill the lesions of the slice, and faintly those of the other slices."""
    view, window = patient.view, crop(patient.view, [patient.index])
    here = mask[patient.index]
    others = np.asarray(mask.any(axis=0) & ~here)
    fill_lesions(axes, others[window], view, colour, opacity=FAINT)
    fill_lesions(axes, here[window], view, colour)


def _lesions_in_words(mask: Mask, patient: Patient) -> str:
    number = lesion_count(mask, patient.view.spacing, opening=False)
    return "no lesion" if number == 0 else f"{number} lesion{'s' * (number != 1)}"


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, color=TEXT, fontsize=9, pad=4)


def _outline(axes: Axes, plane: Mask, view: View, *, color: str, **style: object) -> None:
    """Outline a plane [h, w], if it has any voxel."""
    if plane.any():
        shown = to_display(plane.astype(np.float32), view.spacing, order=1)
        smooth = ndimage.gaussian_filter(shown, 1.0)
        axes.contour(smooth, levels=[0.45 * smooth.max()], colors=color, **style)


def _legend(figure: Figure, scale: LogNorm, outcome: str) -> None:
    """Draw the colour bar, and say what lines and fillings are."""
    draw_scale_bar(figure, scale, left=0.03, bottom=0.4, width=0.3)
    tall = figure.get_figheight()
    figure.legend(
        handles=[
            Line2D([], [], color=BRAIN, label="brain"),
            Line2D([], [], color=OLDER, label="lesions of earlier sessions"),
            Patch(color=SAMPLED, label="new lesions of one sample"),
            Patch(color=OBSERVED, label=f"new lesions observed at {outcome}"),
            Patch(color=TEXT, alpha=FAINT, label="faint: the same in other slices"),
        ],
        loc="lower right",
        bbox_to_anchor=(0.99, 0.16 / tall),
        ncols=3,
        frameon=False,
        fontsize=8.5,
        labelcolor=TEXT,
    )

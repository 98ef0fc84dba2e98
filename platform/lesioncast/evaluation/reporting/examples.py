"""A few test subjects beside their outcome: chosen by rule, drawn again, shown slice by slice."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lesioncast.cluster.actor_map import ordered_actor_map
from lesioncast.evaluation.baselines.methods import ENSEMBLE, by_key
from lesioncast.evaluation.evaluate import EvaluationResult
from lesioncast.evaluation.reporting.html import ExampleCase, Picture
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.ensemble import Ensemble
from lesioncast.forecasting.output.display import (
    View,
    choose_slices,
    crop,
    intensity_window,
    to_radiological,
)
from lesioncast.forecasting.output.figure import (
    BACKGROUND,
    LEAST_SCALE,
    draw_heat,
    draw_orientation,
    draw_outline,
    draw_slice,
)
from lesioncast.forecasting.runtime import build_sampler, device_of
from lesioncast.forecasting.sampling import EnsembleRequest, ensembles, plan_batches, seeds_of
from lesioncast.imaging.channels import CHANNELS, MASKS, SESSIONS
from storage import Case, Store

PANEL_INCHES = 2.6


@dataclass(frozen=True)
class ChosenCase:
    """A row of the assessed cases, and the rule that chose it."""

    row: int
    why: str


def choose_examples(
    count: npt.NDArray[np.float64], probability: npt.NDArray[np.float64]
) -> list[ChosenCase]:
    """Rows of the cases to show, from observed lesions [n] and P(active) [n]; the first on a tie.

    Three by the outcome alone, whatever the forecast said, and then the two gravest errors.
    """
    active, quiet = np.flatnonzero(count > 0), np.flatnonzero(count == 0)
    rules = []
    if len(active):
        order = active[np.argsort(-count[active], kind="stable")]
        missed = active[np.argmin(probability[active])]
        rules += [
            (order[0], "the most new lesions of all"),
            (order[len(order) // 2], "the median number of new lesions among those with any"),
        ]
    if len(quiet):
        rules.append((quiet[0], "the first in the store without new lesions"))
    if len(active):
        rules.append((missed, "new lesions where the forecast was lowest: its gravest miss"))
    if len(quiet):
        alarm = quiet[np.argmax(probability[quiet])]
        rules.append((alarm, "no new lesions where the forecast was highest: its worst alarm"))
    chosen: dict[int, str] = {}
    for row, why in rules:
        chosen[int(row)] = f"{chosen[int(row)]}; {why}" if int(row) in chosen else why
    return [ChosenCase(row, why) for row, why in chosen.items()]


def gallery(
    store: Store,
    test: Sequence[Case],
    bundle: Path,
    assessment: EvaluationResult,
    *,
    settings: EvaluationSettings,
    seed: int,
) -> list[ExampleCase]:
    """The chosen test cases under their own arm, drawn once more on Ray: the same seeds, so the
    samples that were scored."""
    scores = by_key(assessment.methods, ENSEMBLE).scores
    assert scores is not None
    chosen = choose_examples(assessment.cases.count, scores[0])
    cases = [test[each.row] for each in chosen]
    requests = [EnsembleRequest(case.index, case.arm_index) for case in cases]
    seeds = seeds_of(cases, seed=seed, samples=settings.samples)
    batches = plan_batches(requests, seeds, batch_size=settings.batch_size)
    gpus = settings.gpus_per_worker
    build = partial(
        build_sampler, bundle, store.path, device=device_of(gpus), inputs=store.table.inputs
    )
    drawn = ordered_actor_map(build, batches, workers=settings.workers, gpus_per_worker=gpus)
    return [
        example_case(store, case, ensemble, chance=scores[0][each.row], why=each.why)
        for case, ensemble, each in zip(
            cases, ensembles(requests, seeds, drawn), chosen, strict=True
        )
    ]


def example_case(
    store: Store, case: Case, ensemble: Ensemble, *, chance: float, why: str
) -> ExampleCase:
    """One subject: what was forecast and observed, in words and in slices of the store's slab."""
    arrays = store.read(case.index)
    last = SESSIONS.index("w096")
    assert case.present[last, CHANNELS.index("net2")]
    observed = arrays.masks[last, MASKS.index("net2")].astype(bool)
    affine = np.array(case.grid.slab_affine)
    view = View(
        flair=arrays.flair[SESSIONS.index("w048")].astype(np.float32),
        probability={str(case.arm): ensemble.probability},
        observed=observed,
        spacing=store.spec.spacing,
        heights=affine[2, 3] + affine[2, 2] * np.arange(observed.shape[0]),
    )
    words = (
        f"Received {case.arm}. Forecast: {chance:.0%} chance of new lesions, "
        f"{ensemble.plain.mean():.1f} expected, from {len(ensemble.seeds)} samples."
    )
    return ExampleCase(case.subject, why, words, tuple(_pictures(view, case)))


def _pictures(view: View, case: Case) -> list[Picture]:
    """The slice with most observed lesion and that with most forecast probability."""
    assert view.observed is not None
    volume = view.observed.sum(axis=(1, 2))
    forecast = choose_slices(view, 1)[0]
    shown = [forecast] if not volume.any() else [int(np.argmax(volume)), forecast]
    return [_picture(view, index, case) for index in dict.fromkeys(shown)]


def _picture(view: View, index: int, case: Case) -> Picture:
    assert view.observed is not None
    (probability,) = view.probability.values()
    seen, highest = int(view.observed[index].sum()), float(probability[index].max())
    height = f"z {view.heights[index]:+.0f} mm"
    return Picture(
        png=_png(view, index, probability),
        alt=(
            f"{case.subject}, axial slice at {height}: FLAIR at week 48, and the same with the "
            f"forecast in colour, at most {highest:.0%} of the samples at one place, and "
            + (f"{seen} voxels of observed new lesion outlined." if seen else "no observed lesion.")
        ),
        caption=(
            f"{height}. Left: FLAIR at week 48. Right: forecast in colour (highest {highest:.0%})"
            + (", observed new lesions outlined." if seen else "; nothing new observed here.")
        ),
    )


def _png(view: View, index: int, probability: npt.NDArray[np.float32]) -> bytes:
    window_hw = crop(view, [index])
    tall, wide = (
        (part.stop - part.start) * size
        for part, size in zip(window_hw, view.spacing[1:], strict=True)
    )
    figure = Figure(figsize=(2 * PANEL_INCHES, PANEL_INCHES * tall / wide), facecolor=BACKGROUND)
    grid = figure.add_gridspec(1, 2, left=0, right=1, top=1, bottom=0, wspace=0.01)
    flair = to_radiological(view.flair[index][window_hw], view.spacing, order=3)
    scale = Normalize(0, max(LEAST_SCALE, float(probability.max())))
    grey = Normalize(*intensity_window(view))
    draw_orientation(draw_slice(figure, grid[0, 0], flair, grey), view.heights[index])
    axes = draw_slice(figure, grid[0, 1], flair, grey)
    draw_heat(axes, probability[index][window_hw], view, scale)
    draw_outline(axes, view, index, window_hw)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, facecolor=BACKGROUND)
    return content.getvalue()

"""Example test subjects: chosen by rule, sampled again, shown beside their outcome in slices."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lesioncast.arrays import Float32s, Floats
from lesioncast.cluster.actor_map import ordered_actor_map
from lesioncast.evaluation.baselines.methods import by_key, stated_activity
from lesioncast.evaluation.evaluate import EvaluationResult
from lesioncast.evaluation.reporting.html import ExampleCase, Picture
from lesioncast.evaluation.reporting.single_samples import single_samples
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.output.display import (
    View,
    choose_slices,
    crop,
    intensity_window,
    to_display,
)
from lesioncast.forecasting.output.figure import (
    BACKGROUND,
    LEAST_SCALE,
    draw_heat,
    draw_height,
    draw_outline,
    draw_slice,
)
from lesioncast.forecasting.runtime import build_sampler, device_of
from lesioncast.forecasting.sampling import (
    EnsembleRequest,
    RequestSamples,
    ensemble_of,
    group_by_request,
    independent_seeds,
    plan_batches,
    seeds_of,
)
from lesioncast.imaging.channels import CURRENT, MASKS, OUTCOME, SESSIONS
from lesioncast.markdown import format_probability
from storage import Case, Store

PANEL_INCHES = 2.6


@dataclass(frozen=True)
class ChosenCase:
    """A row of the test cases, the rule that chose it, and its P(active)."""

    row: int
    rule: str
    p_active: float


def choose_examples(count: Floats, probability: Floats) -> list[ChosenCase]:
    """Choose the cases to show, from observed lesions [n] and P(active) [n]; the first on a tie.

    Three are chosen by the outcome alone, whatever the forecast, and two by the largest errors.
    """
    active, inactive = np.flatnonzero(count > 0), np.flatnonzero(count == 0)
    rules = []
    if len(active):
        order = active[np.argsort(-count[active], kind="stable")]
        missed = active[np.argmin(probability[active])]
        rules += [
            (order[0], "the most new lesions of all"),
            (order[len(order) // 2], "the median number of new lesions among those with any"),
        ]
    if len(inactive):
        rules.append((inactive[0], "the first in the store without new lesions"))
    if len(active):
        rules.append((missed, "new lesions where the forecast was lowest: the largest miss"))
    if len(inactive):
        alarm = inactive[np.argmax(probability[inactive])]
        rules.append((alarm, "no new lesions where the forecast was highest: the worst alarm"))
    chosen: dict[int, str] = {}
    for row, rule in rules:
        chosen[int(row)] = f"{chosen[int(row)]}; {rule}" if int(row) in chosen else rule
    return [ChosenCase(row, rule, float(probability[row])) for row, rule in chosen.items()]


def example_cases(
    store: Store,
    test: Sequence[Case],
    bundle: Path,
    result: EvaluationResult,
    *,
    settings: EvaluationSettings,
) -> list[ExampleCase]:
    """Return the chosen test cases under their factual arm, sampled once more on Ray.

    The seeds are those of the evaluation, so the samples are the ones that were scored.
    """
    stated = stated_activity([method.key for method in result.methods])
    scores = by_key(result.methods, stated).scores
    assert scores is not None
    chosen = choose_examples(result.cases.count, scores[0])
    cases = [test[one.row] for one in chosen]
    requests = [EnsembleRequest(case.index, case.arm_index) for case in cases]
    seeds = seeds_of(
        cases, seed=result.report.seed, samples=settings.samples, scheme=independent_seeds
    )
    batches = plan_batches(requests, seeds, batch_size=settings.batch_size)
    gpus = settings.gpus_per_worker
    build = partial(
        build_sampler, bundle, store.path, device=device_of(gpus), inputs=store.table.inputs
    )
    sampled = ordered_actor_map(build, batches, workers=settings.workers, gpus_per_worker=gpus)
    drawn = list(group_by_request(requests, seeds, sampled))
    # One scale, so that a colour means the same share in every picture.
    highest = max(float(ensemble_of(each).probability.max()) for each in drawn)
    scale = Normalize(0, max(LEAST_SCALE, highest))
    opening = result.report.opening.applied
    return [
        example_case(store, case, samples, chosen=one, scale=scale, opening=opening)
        for case, samples, one in zip(cases, drawn, chosen, strict=True)
    ]


def example_case(
    store: Store,
    case: Case,
    samples: RequestSamples,
    *,
    chosen: ChosenCase,
    scale: Normalize,
    opening: bool,
) -> ExampleCase:
    """Return one subject's forecast and outcome, in words and in slices of the store's slab.

    `scale` gives the colour of a share of samples. With `opening` lesions are counted after it.
    """
    ensemble = ensemble_of(samples)
    arrays = store.read(case.index)
    last = SESSIONS.index(OUTCOME)
    assert case.has_outcome
    observed = arrays.masks[last, MASKS.index("net2")].astype(bool)
    affine = np.array(case.grid.slab_affine)
    view = View(
        flair=arrays.flair[SESSIONS.index(CURRENT)].astype(np.float32),
        probability={str(case.arm): ensemble.probability},
        observed=observed,
        spacing=store.spec.spacing,
        heights=affine[2, 3] + affine[2, 2] * np.arange(observed.shape[0]),
    )
    exact = ensemble.expected_outcomes(opening=opening) is not None
    probability = format_probability(chosen.p_active, exact=exact)
    maker = "by the prognostic prior" if exact else "as the share of samples"
    flair = f"FLAIR at {store.spec.visits.label(CURRENT)}"
    words = (
        f"Received {case.arm}. Forecast: {probability} probability of new lesions {maker}, "
        f"{ensemble.counts(opening=opening).mean():.1f} lesions on average over "
        f"{len(ensemble.seeds)} samples."
    )
    indices = _shown_slices(view)
    pictures = [_picture(view, index, case, scale, flair) for index in indices]
    samples_beside = single_samples(view, samples.masks, indices[0], subject=case.subject)
    return ExampleCase(case.subject, chosen.rule, words, (*pictures, samples_beside))


def _shown_slices(view: View) -> list[int]:
    """Return the slice with most observed lesion and the slice with most forecast probability."""
    assert view.observed is not None
    volume = view.observed.sum(axis=(1, 2))
    forecast = choose_slices(view, 1)[0]
    indices = [forecast] if not volume.any() else [int(np.argmax(volume)), forecast]
    return list(dict.fromkeys(indices))


def _picture(view: View, index: int, case: Case, scale: Normalize, flair: str) -> Picture:
    assert view.observed is not None
    (probability,) = view.probability.values()
    highest = float(probability[index].max())
    observed_mm3 = float(view.observed[index].sum() * np.prod(view.spacing))
    height = f"z {view.heights[index]:+.0f} mm"
    observed = (
        f"{observed_mm3:.0f} mm3 of observed new lesion outlined."
        if observed_mm3
        else "no observed lesion."
    )
    forecast = (
        f"forecast in colour (highest {highest:.0%})"
        if highest
        else "forecast (no sample has a lesion here)"
    )
    outline = (
        ", observed new lesions outlined." if observed_mm3 else ". No new lesion observed here."
    )
    return Picture(
        png=_png(view, index, probability, scale),
        alt=(
            f"{case.subject}, axial slice at {height}: {flair}, and the same with the "
            f"forecast in colour, at most {highest:.0%} of the samples at one voxel, and {observed}"
        ),
        caption=f"{height}. Left: {flair}. Right: {forecast}{outline}",
    )


def _png(view: View, index: int, probability: Float32s, scale: Normalize) -> bytes:
    """Draw FLAIR alone and FLAIR with the forecast, side by side."""
    window_hw = crop(view, [index])
    height_mm, width_mm = (
        (part.stop - part.start) * size
        for part, size in zip(window_hw, view.spacing[1:], strict=True)
    )
    figure = Figure(
        figsize=(2 * PANEL_INCHES, PANEL_INCHES * height_mm / width_mm), facecolor=BACKGROUND
    )
    grid = figure.add_gridspec(1, 2, left=0, right=1, top=1, bottom=0, wspace=0.01)
    flair = to_display(view.flair[index][window_hw], view.spacing, order=3)
    grey = Normalize(*intensity_window(view))
    draw_height(draw_slice(figure, grid[0, 0], flair, grey), view.heights[index])
    axes = draw_slice(figure, grid[0, 1], flair, grey)
    draw_heat(axes, probability[index][window_hw], view, scale)
    draw_outline(axes, view, index, window_hw)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, facecolor=BACKGROUND)
    return content.getvalue()

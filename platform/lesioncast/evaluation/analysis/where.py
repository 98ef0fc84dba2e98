"""Where new lesions lie: information gain over an atlas, ranks, reliability, and kernel scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.evaluation.analysis.performance import PairedDifference
from lesioncast.evaluation.analysis.spatial import f1_of_samples
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    estimate_mean,
    estimate_of,
    estimate_ratio,
    safe_ratio,
)
from lesioncast.evaluation.metrics.estimate import ByMethod, CaseCount, Estimate, PositiveCount
from lesioncast.evaluation.where.atlas import SMOOTHING_MM
from lesioncast.evaluation.where.density import EVEN_SHARE
from lesioncast.evaluation.where.kernel_score import SMOOTHINGS_MM
from lesioncast.evaluation.where.map_scores import RANK_EDGES, MapScore
from lesioncast.evaluation.where.measurements import (
    COMPARED_MAPS,
    MAP_LABELS,
    OTHER_IMAGES,
    OWN_IMAGES,
    RELIANCE_LABELS,
    SAMPLE_LABELS,
    SPATIAL_PRIOR,
    CaseWhere,
    SampleScores,
    WhereMeasurements,
)
from lesioncast.evaluation.where.rings import RING_EDGES_MM
from lesioncast.imaging.regions import REGIONS

TOP_SHARES = (0.01, 0.05, 0.10)


@dataclass(frozen=True)
class RankRow:
    """Voxels of one bin of a map's ranks: the forecast probability and the observed share.

    Ranks run over each case's brain, from `low` to `high` as shares of it; the most likely voxels
    have the highest. `probability` is the density times the mean new-lesion voxels of the arm's
    active training cases.
    """

    low: float
    high: float
    probability: float
    observed: Estimate

    @property
    def group(self) -> str:
        """Return the ranks as a label, the most likely voxels first."""
        return f"top {100 * (1 - self.high):g} to {100 * (1 - self.low):g} %"


@dataclass(frozen=True)
class MapScores:
    """Scores of one method's maps of the cases with new lesions.

    `nats_case` and `nats_lesion` are the information gain over the atlas, a case and a lesion.
    `top_1`, `top_5` and `top_10` are the shares of new-lesion voxels in so many percent of the
    brain. `miscalibration` is the Kullback-Leibler divergence, over the bins of ranks, of the
    observed from the forecast shares of new-lesion voxels: 0 is best.
    """

    nats_case: Estimate
    nats_lesion: Estimate
    auc: Estimate
    top_1: Estimate
    top_5: Estimate
    top_10: Estimate
    miscalibration: Estimate
    ranks: tuple[RankRow, ...]


@dataclass(frozen=True)
class Reliance:
    """A map from a case's own images or from those of another case of its arm.

    `loss` is the gain from own images minus that from the others', in nats a case; None for own.
    """

    nats_case: Estimate
    loss: Estimate | None
    auc: Estimate


@dataclass(frozen=True)
class RelianceScores:
    """Reliance of the maps on images, over the cases that exchanged them."""

    cases: CaseCount
    inputs: ByMethod[Reliance]


@dataclass(frozen=True)
class SampledMaskScores:
    """Scores of one method's sampled masks, over the test cases whose samples are scored.

    Kernel scores at 3, 6 and 10 mm are relative to that of a forecast without lesions, whose score
    is 1; lower is better. `energy_distance` (1 - IoU) and `f1` stand beside them; F1 is over the
    cases with new lesions. `voxels` are new-lesion voxels a sample.
    """

    kernel_3mm: Estimate
    kernel_6mm: Estimate
    kernel_10mm: Estimate
    energy_distance: Estimate
    f1: Estimate
    voxels: Estimate


@dataclass(frozen=True)
class SampledMasks:
    """Sampled masks by method, and the observed new-lesion voxels a case."""

    cases: CaseCount
    observed_voxels: float
    methods: ByMethod[SampledMaskScores]


@dataclass(frozen=True)
class RingRate:
    """How much likelier a new lesion is in a ring around older lesions than by the atlas.

    The ring ends at `outer_mm`; None for the last, which has no end.
    """

    outer_mm: float | None
    rate: float


@dataclass(frozen=True)
class WhereReport:
    """Where new lesions lie, by the map and by the sampled masks of every method.

    `cases` of `positives`: the test cases, and those with new lesions, whose maps are scored.
    `voxels_outside` lie outside the brain mask and are not scored. Every map has a share
    `even_share` of the even brain; the atlas is smoothed by `atlas_mm`. `differences` compare the
    map of a bundle's spatial prior with others; there are none without one.
    """

    cases: CaseCount
    positives: PositiveCount
    lesion_voxels: int
    voxels_outside: int
    even_share: float
    atlas_mm: float
    rings: tuple[RingRate, ...]
    maps: ByMethod[MapScores]
    differences: tuple[PairedDifference, ...]
    reliance: RelianceScores | None
    samples: SampledMasks


def where_report(
    measurements: WhereMeasurements | None, *, bootstrap: Bootstrap
) -> WhereReport | None:
    """Return the scores of where; None without measurements or without a case with new lesions."""
    if measurements is None:
        return None
    active = [case for case in measurements.cases if case.maps]
    if not active:
        return None
    weights = bootstrap.weights(len(active))
    brain = np.array([case.brain_voxels for case in active], np.float64)
    volume = np.array([measurements.mean_voxels[case.arm] for case in active])
    return WhereReport(
        cases=len(measurements.cases),
        positives=len(active),
        lesion_voxels=sum(case.lesion_voxels for case in active),
        voxels_outside=sum(case.lesion_voxels_outside for case in measurements.cases),
        even_share=EVEN_SHARE,
        atlas_mm=SMOOTHING_MM,
        rings=tuple(
            RingRate(outer, float(rate))
            for outer, rate in zip((*RING_EDGES_MM, None), measurements.ring_rates, strict=True)
        ),
        maps={
            key: map_scores([case.maps[key] for case in active], brain, volume, weights)
            for key in MAP_LABELS
            if all(key in case.maps for case in active)
        },
        differences=_differences(active, weights),
        reliance=_reliance([case for case in active if OTHER_IMAGES in case.maps], bootstrap),
        samples=_sampled_masks([case for case in measurements.cases if case.samples], bootstrap),
    )


def closed_form_risks(measurements: WhereMeasurements | None) -> Floats | None:
    """Return the regional risks that forecasts state in closed form, [n, region].

    NaN for a case without a parcellation; None where no case has them.
    """
    if measurements is None or not any(case.regions for case in measurements.cases):
        return None
    rows = [[case.regions.get(name, np.nan) for name in REGIONS] for case in measurements.cases]
    return np.array(rows, np.float64)


def _differences(cases: Sequence[CaseWhere], weights: Floats) -> tuple[PairedDifference, ...]:
    """Compare the spatial prior's map with others by what they gain on the same cases."""
    return tuple(
        PairedDifference(
            metric="nats_case",
            method=method,
            minus_method=other,
            difference=estimate_mean(
                np.array([c.maps[method].nats_case - c.maps[other].nats_case for c in cases]),
                weights,
            ),
        )
        for method, other in COMPARED_MAPS
        if all({method, other, SPATIAL_PRIOR} <= case.maps.keys() for case in cases)
    )


def map_scores(
    scores: Sequence[MapScore], brain: Floats, volume: Floats, weights: Floats
) -> MapScores:
    """Average the scores of n cases' maps.

    `brain` [n] are the voxels of each brain, `volume` [n] its expected new-lesion voxels, and
    `weights` [b, n] the bootstrap's.
    """
    observed = np.array([score.observed for score in scores])  # [n, bin]
    forecast = np.array([score.forecast for score in scores])
    low = np.array(RANK_EDGES[:-1])
    tops = [
        estimate_ratio(
            observed[:, low >= 1 - share - 1e-9].sum(axis=1), observed.sum(axis=1), weights
        )
        for share in TOP_SHARES
    ]
    return MapScores(
        nats_case=estimate_mean(np.array([score.nats_case for score in scores]), weights),
        nats_lesion=estimate_mean(np.array([score.nats_lesion for score in scores]), weights),
        auc=estimate_mean(np.array([score.auc for score in scores]), weights),
        top_1=tops[0],
        top_5=tops[1],
        top_10=tops[2],
        miscalibration=estimate_of(lambda w: _miscalibration(observed, forecast, w), weights),
        ranks=_rank_rows(observed, forecast * volume[:, None], brain, weights),
    )


def _miscalibration(observed: Floats, forecast: Floats, weights: Floats) -> Floats:
    """Return the divergence of observed from forecast shares in every resample, [b].

    `observed` [n, bin] are voxels. `forecast` [n, bin] are densities, weighted here by each case's
    voxels, so that how many there are does not matter.
    """
    found = weights @ observed
    expected = weights @ (forecast * observed.sum(axis=1, keepdims=True))
    ratio = safe_ratio(found, expected, undefined=1.0)
    terms = found * np.log(np.where(found > 0, ratio, 1.0))
    # Rounding may leave a perfect forecast a little below 0.
    return np.maximum(safe_ratio(terms.sum(axis=1), found.sum(axis=1)), 0.0)


def _rank_rows(
    observed: Floats, expected: Floats, brain: Floats, weights: Floats
) -> tuple[RankRow, ...]:
    """Return the bins of ranks, most likely first, from observed and expected voxels [n, bin]."""
    rows = []
    for place, (low, high) in enumerate(zip(RANK_EDGES, RANK_EDGES[1:], strict=False)):
        voxels = brain * (high - low)
        rows.append(
            RankRow(
                low=low,
                high=high,
                probability=float(expected[:, place].sum() / voxels.sum()),
                observed=estimate_ratio(observed[:, place], voxels, weights),
            )
        )
    return tuple(rows[::-1])


def _reliance(cases: Sequence[CaseWhere], bootstrap: Bootstrap) -> RelianceScores | None:
    """Score the maps from own and from exchanged images on the same cases."""
    if not cases:
        return None
    weights = bootstrap.weights(len(cases))
    gain = {
        key: np.array([case.maps[key].nats_case for case in cases])
        for key in RELIANCE_LABELS
        if all(key in case.maps for case in cases)
    }
    return RelianceScores(
        cases=len(cases),
        inputs={
            key: Reliance(
                nats_case=estimate_mean(gain[key], weights),
                loss=estimate_mean(gain[OWN_IMAGES[key]] - gain[key], weights)
                if key in OWN_IMAGES
                else None,
                auc=estimate_mean(np.array([case.maps[key].auc for case in cases]), weights),
            )
            for key in gain
        },
    )


def _sampled_masks(cases: Sequence[CaseWhere], bootstrap: Bootstrap) -> SampledMasks:
    weights = bootstrap.weights(len(cases))
    empty = np.array([case.kernel_of_empty for case in cases])
    lesion_voxels = [case.lesion_voxels + case.lesion_voxels_outside for case in cases]
    return SampledMasks(
        cases=len(cases),
        observed_voxels=float(np.mean(lesion_voxels)),
        methods={
            key: _sampled_mask_scores([case.samples[key] for case in cases], empty, weights)
            for key in SAMPLE_LABELS
            if all(key in case.samples for case in cases)
        },
    )


def _sampled_mask_scores(
    scores: Sequence[SampleScores], empty: Floats, weights: Floats
) -> SampledMaskScores:
    """Average the scores of n cases' samples; `empty` [n, smoothing] scores empty masks."""
    kernel = np.array([score.kernel for score in scores])
    assert kernel.shape[1] == len(SMOOTHINGS_MM) == 3
    ratios = [estimate_ratio(kernel[:, k], empty[:, k], weights) for k in range(3)]
    comparisons = [score.comparison for score in scores]

    def mean(values: Sequence[float]) -> Estimate:
        return estimate_mean(np.array(values, np.float64), weights)

    return SampledMaskScores(
        kernel_3mm=ratios[0],
        kernel_6mm=ratios[1],
        kernel_10mm=ratios[2],
        energy_distance=mean([one.energy for one in comparisons]),
        f1=mean([f1_of_samples(one) for one in comparisons]),
        voxels=mean([score.voxels for score in scores]),
    )

"""Sampled masks against observed masks: where lesions are forecast, over all cases."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    estimate_mean,
    estimate_ratio,
)
from lesioncast.evaluation.metrics.estimate import ByGroup, CaseCount, Estimate
from lesioncast.evaluation.metrics.mask_comparison import MaskComparison

MAX_RELIABILITY_ROWS = 10  # rows of the voxels' reliability table with a probability above 0


@dataclass(frozen=True)
class LesionFreeCases:
    """What samples hold for the cases without an observed lesion, as MSSEG-2 reports them.

    `empty_sample_share` is the share of samples without a lesion. The estimates are None without
    such cases.
    """

    cases: CaseCount
    lesions_per_sample: Estimate | None
    mm3_per_sample: Estimate | None
    empty_sample_share: Estimate | None


@dataclass(frozen=True)
class MaskScores:
    """Agreement of sampled and observed masks in one group.

    F1 is over the cases with an observed lesion: of the samples, and of the mask of the voxels
    that at least half of the samples hold. `energy_distance_of_empty` is that of a forecast
    without lesions. `diversity` is the mean distance between two samples.
    """

    cases: CaseCount
    cases_with_lesions: int
    f1_sample: Estimate
    f1_majority: Estimate
    lesion_free: LesionFreeCases
    energy_distance: Estimate
    energy_distance_of_empty: Estimate
    diversity: Estimate


@dataclass(frozen=True)
class VoxelReliabilityRow:
    """Voxels of about one forecast probability, and the share of them that is observed lesion.

    `probability` is the mean over the voxels; None without voxels.
    """

    probability: float | None
    voxels: int
    lesion_voxels: int
    lesion_share: Estimate

    @property
    def group(self) -> str:
        """Return the forecast probability as a label."""
        return "" if self.probability is None else f"probability {self.probability:.4g}"


@dataclass(frozen=True)
class VoxelReliability:
    """Reliability of the voxels' probability, their Brier score, and the share of lesion voxels."""

    rows: tuple[VoxelReliabilityRow, ...]
    brier: Estimate
    lesion_share: float


@dataclass(frozen=True)
class SpatialAgreement:
    """Agreement of masks in every group, and reliability of voxels over all cases."""

    groups: ByGroup[MaskScores]
    voxels: VoxelReliability


def f1_of_samples(comparison: MaskComparison) -> float:
    """Return the mean F1 over the samples of a case; NaN where no lesion was observed."""
    scores = [np.nan if sample.f1 is None else sample.f1 for sample in comparison.per_sample]
    return float(np.mean(scores))


def spatial_agreement(
    comparisons: Sequence[MaskComparison],
    groups: Iterable[tuple[str, Bools]],
    *,
    bootstrap: Bootstrap,
) -> SpatialAgreement:
    """Score the masks of every case; `groups` are (name, member [n]) over `comparisons` [n]."""
    by_group = {}
    for name, member in groups:
        in_group = [one for one, belongs in zip(comparisons, member, strict=True) if belongs]
        by_group[name] = _mask_scores(in_group, bootstrap.weights(len(in_group)))
    return SpatialAgreement(
        by_group, voxel_reliability(comparisons, bootstrap.weights(len(comparisons)))
    )


def _mask_scores(comparisons: Sequence[MaskComparison], weights: Floats) -> MaskScores:
    def mean(values: Sequence[float]) -> Estimate:
        return estimate_mean(np.array(values, np.float64), weights)

    has_lesion = np.array([one.majority.observed > 0 for one in comparisons], bool)
    majority = [one.majority.f1 for one in comparisons]
    return MaskScores(
        cases=len(comparisons),
        cases_with_lesions=int(has_lesion.sum()),
        f1_sample=mean([f1_of_samples(one) for one in comparisons]),
        f1_majority=mean([np.nan if f1 is None else f1 for f1 in majority]),
        lesion_free=_lesion_free(
            [one for one, lesion in zip(comparisons, has_lesion, strict=True) if not lesion],
            weights[:, ~has_lesion],
        ),
        energy_distance=mean([one.energy for one in comparisons]),
        # An empty mask is at distance 1 from a mask with lesions and at 0 from an empty one.
        energy_distance_of_empty=mean([2.0 * bool(one.lesion_voxels.sum()) for one in comparisons]),
        diversity=mean([one.diversity for one in comparisons]),
    )


def _lesion_free(comparisons: Sequence[MaskComparison], weights: Floats) -> LesionFreeCases:
    if not comparisons:
        return LesionFreeCases(0, None, None, None)
    lesions = np.array([[s.predicted for s in one.per_sample] for one in comparisons], np.float64)
    volume = np.array(
        [[s.predicted_mm3 for s in one.per_sample] for one in comparisons], np.float64
    )
    return LesionFreeCases(
        cases=len(comparisons),
        lesions_per_sample=estimate_mean(lesions.mean(axis=1), weights),
        mm3_per_sample=estimate_mean(volume.mean(axis=1), weights),
        empty_sample_share=estimate_mean((lesions == 0).mean(axis=1), weights),
    )


def voxel_reliability(comparisons: Sequence[MaskComparison], weights: Floats) -> VoxelReliability:
    """Return the observed lesion share of voxels by forecast probability, and the Brier score.

    The score is the fair one: what the share of infinitely many samples would have on average
    (Ferro 2014). Every voxel of every slab counts. Probabilities above 0 fall into at most
    `MAX_RELIABILITY_ROWS` rows.
    """
    voxels = np.array([one.voxels for one in comparisons], np.float64)  # [n, k + 1]
    lesions = np.array([one.lesion_voxels for one in comparisons], np.float64)
    samples = voxels.shape[1] - 1
    count = np.arange(samples + 1)  # of samples that hold a voxel
    probability = count / samples
    row_of = np.ceil(count * min(MAX_RELIABILITY_ROWS, samples) / samples - 1e-9).astype(int)
    # What the sampling of k masks adds to the squared error of a probability.
    sampling_variance = probability * (1 - probability) / (samples - 1)
    squared = (
        voxels @ (probability**2 - sampling_variance)
        - 2 * lesions @ probability
        + lesions.sum(axis=1)
    )
    return VoxelReliability(
        rows=tuple(
            _reliability_row(voxels, lesions, probability, row_of == row, weights)
            for row in np.unique(row_of)
        ),
        brier=estimate_ratio(squared, voxels.sum(axis=1), weights),
        lesion_share=float(lesions.sum() / voxels.sum()),
    )


def _reliability_row(
    voxels: Floats, lesions: Floats, probability: Floats, columns: Bools, weights: Floats
) -> VoxelReliabilityRow:
    """Return the row of the probabilities in `columns` [k + 1], from voxels [n, k + 1]."""
    total = voxels[:, columns].sum()
    return VoxelReliabilityRow(
        probability=float(voxels[:, columns].sum(axis=0) @ probability[columns] / total)
        if total
        else None,
        voxels=int(total),
        lesion_voxels=int(lesions[:, columns].sum()),
        lesion_share=estimate_ratio(
            lesions[:, columns].sum(axis=1), voxels[:, columns].sum(axis=1), weights
        ),
    )

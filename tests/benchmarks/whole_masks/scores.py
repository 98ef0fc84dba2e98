"""Score whole masks: by case, and by how lesions of all cases are distributed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats, Mask, Spacing
from lesioncast.evaluation.metrics.bootstrap import ResampledScore, safe_ratio
from lesioncast.evaluation.metrics.scores import crps
from lesioncast.evaluation.where.kernel_score import SMOOTHINGS_MM, kernel_scores
from lesioncast.imaging.lesions import components

CASE_SCORES = (
    *(f"kernel {width:g} mm" for width in SMOOTHINGS_MM),
    "CRPS lesions", "CRPS volume, ml", "CRPS largest, ml",
)  # fmt: skip
DISTRIBUTIONS = ("log volume", "nearest, mm", "all pairs, mm")
# Ends and number of bins of each distribution; values beyond are counted at the ends.
BINS = {
    "log volume": (0.0, 12.0, 480),
    "nearest, mm": (0.0, 60.0, 240),
    "all pairs, mm": (0.0, 150.0, 300),
}


@dataclass(frozen=True)
class MaskSummary:
    """What the lesions of one mask are."""

    #: Volume of each lesion in mm3, [n].
    volumes: Floats
    #: Distances between the middles of two lesions of the mask in mm, all pairs [p].
    pairs: Floats
    #: Distance from each lesion to the nearest other one, [n]; none in a mask with one lesion.
    nearest: Floats

    def values(self, distribution: str) -> Floats:
        """Return the values that this mask adds to a distribution."""
        return {
            "log volume": np.log(self.volumes),
            "nearest, mm": self.nearest,
            "all pairs, mm": self.pairs,
        }[distribution]


def summarise(mask: Mask, spacing: Spacing) -> MaskSummary:
    """Measure the lesions of a mask [s, h, w]."""
    labels, number = components(mask)
    voxels = np.argwhere(labels)
    label = labels[tuple(voxels.T)] - 1
    size = np.bincount(label, minlength=number).astype(np.float64)
    middles = np.stack(
        [np.bincount(label, weights=voxels[:, axis], minlength=number) for axis in range(3)], axis=1
    )
    middles = middles / np.maximum(size, 1)[:, None] * spacing
    distance = np.linalg.norm(middles[:, None] - middles, axis=2)
    pairs = distance[np.triu_indices(number, 1)]
    np.fill_diagonal(distance, np.inf)
    nearest = distance.min(axis=1) if number > 1 else np.zeros(0)
    return MaskSummary(size * math.prod(spacing), pairs, nearest)


def case_scores(
    masks: Bools,
    observed: Mask,
    spacing: Spacing,
    summaries: tuple[Sequence[MaskSummary], MaskSummary],
) -> Floats:
    """Return `CASE_SCORES` of the sampled masks [k, s, h, w] of one case; lower is better.

    `summaries` are those of the sampled masks and of the observed one.
    """
    sampled, true = summaries
    return np.concatenate(
        [
            kernel_scores(masks, observed, spacing),
            crps(amounts(true), np.stack([amounts(one) for one in sampled], axis=1)),
        ]
    )


def amounts(summary: MaskSummary) -> Floats:
    """Return number of lesions, total volume and that of the largest lesion in ml, [3]."""
    volumes = summary.volumes
    return np.array([len(volumes), volumes.sum() / 1000, volumes.max(initial=0.0) / 1000])


def histograms(masks: Sequence[Sequence[MaskSummary]], distribution: str) -> Floats:
    """Return how many values of each case's masks lie in each bin, a mask, [case, bin]."""
    low, high, bins = BINS[distribution]
    rows = []
    for of_case in masks:
        values = np.concatenate([one.values(distribution) for one in of_case])
        counts, _ = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
        rows.append(counts / len(of_case))
    return np.array(rows, np.float64)


def wasserstein(sampled: Floats, observed: Floats, distribution: str) -> ResampledScore:
    """Return the Wasserstein-1 distance of two pooled distributions as a resampled score.

    Both are histograms [case, bin] of `histograms`. The distance is in the distribution's unit.
    """
    low, high, bins = BINS[distribution]

    def score(weights: Floats) -> Floats:
        first, second = (np.cumsum(_share(weights @ each), axis=1) for each in (sampled, observed))
        return np.asarray(np.abs(first - second).sum(axis=1) * (high - low) / bins)

    return score


def _share(counts: Floats) -> Floats:
    """Return counts [b, bin] as shares of each row."""
    return safe_ratio(counts, np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape))

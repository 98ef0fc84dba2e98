"""Base log odds of new lesions: where a patient's lesions are likely, times how many there are.

A spatial prior, which is fitted by itself, gives the log density of a new-lesion voxel for each
patient. Times the number of lesion voxels of a lesion load class it is the rate of lesions at each
voxel. The networks start from its log odds and learn what it lacks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lesioncast.diffusion.lesion_load import (
    MIN_PROBABILITY,
    SHIFT_LIMIT,
)
from lesioncast.seeds import load_quantile

# Nats below the even density that a voxel's density is raised to. Voxels that the prior excludes
# then hold less than 0.3 % of the lesions at any resolution, and the networks can still raise them.
LEAST_DENSITY = 6.0
MAX_RATE = 0.9  # a rate is no probability and may exceed 1
MAX_STEPS, TOLERANCE = 40, 1e-4  # of Newton's method on the log of a sum


@dataclass(frozen=True)
class BaseMap:
    """The density that stands in for a patient without images, and lesion voxels by class."""

    #: Log density of a new-lesion voxel for a patient without images, [s, h, w]; its exp sums to 1.
    atlas: Tensor
    #: Numbers of lesion voxels of each class with lesions at evenly spread quantiles, rising,
    #: [class - 1, quantile].
    voxels: Tensor

    def to(self, device: torch.device | str) -> "BaseMap":
        """Return the map on `device`."""
        return BaseMap(self.atlas.to(device), self.voxels.to(device))

    def mean_voxels(self, lesion_load: Tensor) -> Tensor:
        """Return the mean number of lesion voxels of classes [b]; class 0 counts as class 1.

        Class 0 has no lesions and passes through no network, but may fill up a batch.
        """
        means: Tensor = self.voxels.to(lesion_load.device).mean(1)
        return means[lesion_load.clamp(min=1) - 1]

    def sample_voxels(self, logits: Tensor, seed: int, lesion_load: int) -> float:
        """Return the number of lesion voxels that a sample's seed draws within its class.

        `logits` [class] are those from which `sample_load_class` drew the class with this seed. The
        seed's quantile within the class, which is uniform, gives the number.
        """
        edges = [0.0, *logits.double().softmax(0).cumsum(0)[:-1].tolist(), 1.0]
        lower, upper = edges[lesion_load], edges[lesion_load + 1]
        within = (load_quantile(seed) - lower) / max(upper - lower, MIN_PROBABILITY)
        of_class = self.voxels[max(lesion_load, 1) - 1]
        place = min(max(int(within * len(of_class)), 0), len(of_class) - 1)
        return float(of_class[place])


def base_log_odds(log_density: Tensor, voxels: Tensor) -> Tensor:
    """Return the base log odds [b, s, h, w] of a log density of that shape and lesion voxels [b].

    They are the log odds of the rate of lesions: the density times the number of lesion voxels.
    """
    least = -math.log(log_density[0].numel()) - LEAST_DENSITY
    number = voxels[:, None, None, None]
    rate = (log_density.clamp(min=least) + number.log()).clamp(max=math.log(MAX_RATE))
    return rate - torch.log1p(-rate.exp())


def hold_voxels(x_hat: Tensor, voxels: Tensor) -> Tensor:
    """Shift the log odds of NET2's x_hat [b, s, h, w] so that each row expects `voxels` [b].

    Given that a mask has n lesion voxels, its expectation has n, whatever z_t. All log odds of a
    row are shifted by the same amount.
    """
    probability = (x_hat + 1) / 2
    held = torch.stack(
        [
            torch.sigmoid(odds + shift_to_total(odds, total))
            for odds, total in zip(
                probability.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).logit(),
                voxels.tolist(),
                strict=True,
            )
        ]
    )
    return 2 * held - 1


def shift_to_total(log_odds: Tensor, total: float) -> float:
    """Return the amount by which to shift `log_odds` so that the probabilities sum to `total`.

    Newton's method on the log of the sum, which is linear in the shift while probabilities are
    small. Where a step leaves the interval that holds the root, the interval is halved.
    """
    below, above, shift = -SHIFT_LIMIT, SHIFT_LIMIT, 0.0
    for _ in range(MAX_STEPS):
        probability = torch.sigmoid(log_odds + shift)
        expected = float(probability.sum())
        error = math.log(total) - math.log(expected)
        if abs(error) < TOLERANCE:
            break
        below, above = (shift, above) if error > 0 else (below, shift)
        slope = expected - float(probability.square().sum())
        step = error * expected / max(slope, MIN_PROBABILITY)
        inside = below < shift + step < above
        shift = shift + step if inside else (below + above) / 2
    return shift


def voxel_quantiles(voxels: Sequence[int], thresholds: Sequence[int], *, quantiles: int) -> Tensor:
    """Return the quantiles of the lesion voxels of masks in each class, [class - 1, quantile].

    `voxels` are the numbers of lesion voxels of training cases. `thresholds` are those of the
    classes. A class without cases has its threshold.
    """
    counts = torch.tensor(sorted(voxels), dtype=torch.float32)
    ends = (*thresholds[1:], math.inf)
    rows = []
    for least, end in zip(thresholds, ends, strict=True):
        of_class = counts[(counts >= least) & (counts < end)]
        if not len(of_class):
            of_class = torch.tensor([float(least)])
        places = (torch.arange(quantiles) + 0.5) / quantiles * len(of_class)
        rows.append(of_class[places.long()])
    return torch.stack(rows)

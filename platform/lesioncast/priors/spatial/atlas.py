"""The lesion atlas: the smoothed, left-right symmetric sum of the training cases' new lesions."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Float32s, Mask, Spacing
from lesioncast.priors.spatial.smoothing import smooth

# Standard deviations of the smoothing in mm: the first is the atlas, the second a coarser one.
ATLAS_MM = (4.0, 8.0)
# Share of an even density in the atlas, so that its logarithm is finite.
EVEN_SHARE = 1e-4


@dataclass(frozen=True)
class LesionAtlas:
    """Sum of the new-lesion masks of training cases, [s, h, w], and its voxel size in mm."""

    total: Float32s
    spacing: Spacing

    def without(self, outcome: Mask) -> "LesionAtlas":
        """Return the atlas without one case that is part of it."""
        return LesionAtlas(self.total - outcome, self.spacing)

    @cached_property
    def densities(self) -> Float32s:
        """Return the density of a new-lesion voxel for each of ATLAS_MM, [width, s, h, w].

        Each sums to 1.
        """
        maps = np.stack([smooth_symmetric(self.total, self.spacing, width) for width in ATLAS_MM])
        maps = np.maximum(maps, 0).astype(np.float64)
        sums = maps.sum(axis=(1, 2, 3), keepdims=True)
        shares = np.divide(maps, sums, out=np.zeros_like(maps), where=sums > 0)
        even = 1 / self.total.size
        maps = np.where(sums > 0, (1 - EVEN_SHARE) * shares + EVEN_SHARE * even, even)
        return np.asarray(maps, np.float32)


def smooth_symmetric(total: npt.NDArray[np.floating], spacing: Spacing, sigma: float) -> Float32s:
    """Return counts of lesions [s, h, w], averaged with their mirror image and smoothed by `sigma`.

    Slabs are centred on the brain in plane, so left and right are mirrored about the middle of w.
    `sigma` is in mm. The operation is linear.
    """
    symmetric = np.asarray((total + total[..., ::-1]) / 2, np.float32)
    return smooth(symmetric, spacing, sigma)

"""The atlas: a smoothed mean of the training cases' new lesions, the same map for everybody."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Floats, Spacing
from lesioncast.priors.spatial.atlas import ATLAS_MM, smooth_symmetric

# Standard deviation of the smoothing. Left-out training cases of the demo had about their highest
# likelihood at 3 and 4 mm, of 3 to 10; the wider one asks for fewer cases.
SMOOTHING_MM = ATLAS_MM[0]

Voxels = npt.NDArray[np.int32]
"""Flat indices of the lesion voxels of a slab."""


def sum_of_masks(masks: Iterable[Voxels], shape: tuple[int, int, int]) -> Floats:
    """Return how many of the masks have a lesion at each voxel, [s, h, w]."""
    total = np.zeros(shape)
    for voxels in masks:
        total.flat[voxels] += 1
    return total


def atlas_of(total: Floats, spacing: Spacing) -> Floats:
    """Return counts of lesions [s, h, w] as the atlas of a spatial prior smooths them.

    The atlas without one case is that of the sum minus that case's mask.
    """
    return smooth_symmetric(total, spacing, SMOOTHING_MM).astype(np.float64)

"""The atlas: a smoothed mean of the training cases' new lesions, the same map for everybody."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lesioncast.arrays import Floats

# Standard deviation of the smoothing. Left-out training cases of the demo had about their highest
# likelihood at 3 and 4 mm, of 3 to 10; the wider one asks for fewer cases.
SMOOTHING_MM = 4.0

Spacing = tuple[float, float, float]
Voxels = npt.NDArray[np.int32]
"""Flat indices of the lesion voxels of a slab."""


def sum_of_masks(masks: Iterable[Voxels], shape: tuple[int, int, int]) -> Floats:
    """Return how many of the masks have a lesion at each voxel, [s, h, w]."""
    total = np.zeros(shape)
    for voxels in masks:
        total.flat[voxels] += 1
    return total


def smooth_symmetric(total: Floats, spacing: Spacing) -> Floats:
    """Return counts of lesions [s, h, w], smoothed and averaged with their mirror image.

    Slabs are centred on the brain in plane, so left and right are mirrored about the middle of w.
    The operation is linear: the atlas without one case is that of the sum minus that case's mask.
    """
    symmetric = (total + total[..., ::-1]) / 2
    widths = [SMOOTHING_MM / size for size in spacing]
    return np.asarray(ndimage.gaussian_filter(symmetric, widths, mode="constant"))

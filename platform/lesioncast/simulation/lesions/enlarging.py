"""Let an older lesion enlarge: choose the lesion, and a free voxel beside it where a lobe starts.

The lobe is a lesion of its own in the lesions of a period, so it has a rank and counts as one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lesioncast.arrays import Bools, Floats
from lesioncast.simulation.lesions.radii import RadiusDistribution
from lesioncast.simulation.lesions.shapes import Lesion
from lesioncast.simulation.lesions.sites import FreeTissue, Voxel
from storage.layout import CONNECTIVITY_26

LOBE_RADIUS = RadiusDistribution(2.9, 0.26, 1.6, 5.0)
# Weight of an active lesion relative to another of the same surface.
_ACTIVE_WEIGHT = 15.0


def host_weights(lesions: Sequence[Lesion], active: Bools) -> Floats:
    """Return the weight with which each lesion enlarges, [n]: its surface, more if it is active."""
    voxels = np.array([np.count_nonzero(lesion.mask) for lesion in lesions], np.float64)
    return np.where(active, _ACTIVE_WEIGHT, 1.0) * voxels ** (2 / 3)


def free_voxels_beside(lesion: Lesion, free: FreeTissue) -> npt.NDArray[np.intp]:
    """Return the free voxels of white matter that touch a lesion, [n, 3]."""
    touching = ndimage.binary_dilation(lesion.mask, CONNECTIVITY_26) & free.white[lesion.window]
    corner = np.array([part.start for part in lesion.window], np.intp)
    return np.asarray(np.argwhere(touching) + corner)


def draw_enlargement(
    rng: np.random.Generator, lesions: Sequence[Lesion], weights: Floats, free: FreeTissue
) -> tuple[Lesion, Voxel] | None:
    """Draw which lesion enlarges, by `weights` [n], and the voxel beside it where its lobe starts.

    Return None if none of the lesions has free white matter beside it.
    """
    weights = weights.copy()
    while weights.any():
        host = int(rng.choice(len(lesions), p=weights / weights.sum()))
        beside = free_voxels_beside(lesions[host], free)
        if len(beside):
            s, h, w = beside[rng.integers(len(beside))].tolist()
            return lesions[host], (s, h, w)
        weights[host] = 0.0
    return None

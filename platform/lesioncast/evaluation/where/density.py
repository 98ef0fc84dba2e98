"""Maps as densities over the voxels of one brain, so that every method's map is scored alike."""

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Floats, Mask
from lesioncast.imaging.channels import CURRENT, SESSIONS
from lesioncast.imaging.features.image_features import CaseImages
from storage.layout import head_mask

# Share of the even brain in every map. A map that is 0 at a lesion voxel would score minus
# infinity; with this share it loses at most log(1 / EVEN_SHARE) = 4.6 nats a voxel to the even one.
EVEN_SHARE = 0.01


def brain_of(images: CaseImages) -> Mask:
    """Return the voxels of a case over which maps are densities, [s, h, w].

    They are those of the parcellation, or without one those of the head in the current FLAIR.
    """
    if images.parcellation.any():
        return np.asarray(images.parcellation > 0)
    return head_mask(images.flair[SESSIONS.index(CURRENT)])


def density_in(brain: Mask, volume: npt.NDArray[np.floating]) -> Floats:
    """Return a map [s, h, w] as a density over the brain's voxels, [n], whose sum is 1.

    The map has a share EVEN_SHARE of the even brain. A map that is 0 in the whole brain is even.
    """
    weights = volume[brain].astype(np.float64)
    total = weights.sum()
    even = np.full(len(weights), 1 / len(weights))
    return (1 - EVEN_SHARE) * weights / total + EVEN_SHARE * even if total > 0 else even

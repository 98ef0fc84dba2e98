"""Measure size and rim of the head, or of the brain if the skull was removed, in one FLAIR image.

A wrong voxel size changes the size. A scalp that was not removed is a bright rim behind a dark one.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lesioncast.arrays import Floats, Mask
from storage.layout import head_mask

HEAD_FEATURES = ("extent_forward", "extent_right", "rim", "dark_share")
# Thickness of the rim in mm.
RIM_MM = 6.0
# Voxels below this share of the way from the darkest to the median tissue count as dark, as
# cerebrospinal fluid does.
_DARK = 0.5


def head_features(flair: npt.NDArray[np.float16], spacing: tuple[float, float, float]) -> Floats:
    """Return the features named in `HEAD_FEATURES` of an image [s, h, w] in [-1, 1], [feature].

    In order: logarithm of the extent in mm from back to front and from left to right; mean
    intensity of the outer 6 mm in plane minus the median of the rest; share of dark tissue.
    """
    image, head = flair.astype(np.float64), head_mask(flair)
    if not head.any():
        return np.full(len(HEAD_FEATURES), np.nan)
    _, h, w = spacing
    rim = head & ~_eroded(head, spacing)
    inner = head & ~rim
    core = image[inner] if inner.any() else image[head]
    dark = image[head] < -1 + _DARK * (np.median(core) + 1)
    return np.array(
        [
            np.log(h * _extent(np.asarray(head.any(axis=(0, 2))))),
            np.log(w * _extent(np.asarray(head.any(axis=(0, 1))))),
            (image[rim].mean() if rim.any() else np.nan) - np.median(core),
            dark.mean(),
        ]
    )


def _extent(occupied: Mask) -> int:
    """Return the number of voxels from the first to the last that is occupied along an axis."""
    positions = np.flatnonzero(occupied)
    return int(positions[-1] - positions[0] + 1)


def _eroded(head: Mask, spacing: tuple[float, float, float]) -> Mask:
    """Return the part of a mask that is deeper than the rim in its axial slice."""
    depth = [ndimage.distance_transform_edt(plane, sampling=spacing[1:]) for plane in head]
    return np.asarray(np.stack(depth) > RIM_MM)

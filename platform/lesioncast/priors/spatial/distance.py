"""Distance to a mask in millimetres, as far as it matters."""

import numpy as np

from lesioncast.arrays import Float32s, Mask, Spacing


def distance_to(mask: Mask, spacing: Spacing, *, furthest: float) -> Float32s:
    """Return the distance of each voxel to a mask in mm, at most `furthest`, [s, h, w].

    The squared distance is the minimum over one axis after the other (Felzenszwalb and Huttenlocher
    2012). Only offsets up to `furthest` are tried, which is faster than a full transform.
    """
    squared = np.where(mask, np.float32(0), np.float32(furthest**2))
    for axis, step in enumerate(spacing):
        along = np.moveaxis(squared, axis, 0)
        nearest = along.copy()
        for offset in range(1, min(int(furthest / step) + 1, len(along))):
            cost = np.float32((offset * step) ** 2)
            ahead, behind = nearest[offset:], nearest[:-offset]
            np.minimum(ahead, along[:-offset] + cost, out=ahead)
            np.minimum(behind, along[offset:] + cost, out=behind)
        squared = np.moveaxis(nearest, 0, axis)
    return np.sqrt(squared)

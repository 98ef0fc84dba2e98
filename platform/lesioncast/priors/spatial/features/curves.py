"""Turn a number per voxel into features from which a linear model makes any smooth curve."""

from collections.abc import Sequence

import numpy as np

from lesioncast.arrays import Float32s


def hats(values: Float32s, knots: Sequence[float]) -> Float32s:
    """Return the piecewise linear basis of values [n] on rising knots, [knots - 1, n].

    A row is 1 at its knot, falls linearly to 0 at the neighbours, and values beyond the knots count
    as the outermost knots. The row of the last knot is left out: where all are 0, the value is
    there.
    """
    place = np.interp(values, knots, np.arange(len(knots))).astype(np.float32)
    offsets = np.abs(place - np.arange(len(knots) - 1, dtype=np.float32)[:, None])
    return np.asarray(np.maximum(1 - offsets, 0), np.float32)


def join(*features: Float32s) -> Float32s:
    """Join features [n] and [k, n] into a matrix [feature, n]."""
    return np.concatenate(
        [feature if feature.ndim == 2 else feature[None] for feature in features], dtype=np.float32
    )

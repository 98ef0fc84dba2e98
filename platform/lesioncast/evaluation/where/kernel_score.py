"""Kernel score of sampled masks: an energy score on smoothed masks.

The distance of two masks is the L2 norm of the difference of the masks after Gaussian smoothing.
Where 1 - IoU is 1 for any two masks that do not overlap, this distance grows with how far apart
their lesions lie, up to about the width of the smoothing. The score E d(X, y) - E d(X, X') / 2 is
proper (Gneiting and Raftery 2007, section 5.1).
"""

import numpy as np

from lesioncast.arrays import Bools, Float32s, Floats, Spacing
from lesioncast.evaluation.metrics.mask_comparison import mean_off_diagonal

SMOOTHINGS_MM = (3.0, 6.0, 10.0)


def smoothed_products(masks: Bools, spacing: Spacing, smoothing: float) -> Floats:
    """Return the inner product of each pair of smoothed masks [m, s, h, w], [m, m].

    The space is unbounded, so smoothing loses nothing at the edges. Two Gaussians of standard
    deviation `smoothing` mm, at a distance r, have the product exp(-r^2 / (4 smoothing^2)), in
    units of the product of a voxel with itself.
    """
    inside = _box(np.asarray(masks.any(axis=0)))
    values = masks[(slice(None), *inside)].astype(np.float32)
    smooth = values
    for axis, size in enumerate(spacing, 1):
        smooth = _smooth_axis(smooth, axis, size, smoothing)
    products = values.reshape(len(masks), -1) @ smooth.reshape(len(masks), -1).T
    return np.asarray(products, np.float64)


def _box(mask: Bools) -> tuple[slice, ...]:
    """Return the bounding box of a mask [s, h, w], empty for an empty mask."""
    places = np.nonzero(mask)
    return tuple(slice(at.min(), at.max() + 1) if at.size else slice(0) for at in places)


def _smooth_axis(volume: Float32s, axis: int, size: float, smoothing: float) -> Float32s:
    """Multiply one axis by the matrix exp(-r^2 / (4 smoothing^2)) of its voxels' distances r."""
    place = np.arange(volume.shape[axis]) * size
    kernel = np.exp(-((place[:, None] - place) ** 2) / (4 * smoothing**2)).astype(np.float32)
    return np.asarray(np.moveaxis(np.tensordot(volume, kernel, (axis, 0)), -1, axis))


def kernel_scores(samples: Bools, observed: Bools, spacing: Spacing) -> Floats:
    """Return the kernel score of k sampled masks [k, s, h, w] at each of SMOOTHINGS_MM.

    Lower is better. Samples must be independent; pairs are distinct (the fair form, Ferro 2014).
    """
    masks = np.concatenate([observed[None], samples])
    scores = []
    for smoothing in SMOOTHINGS_MM:
        distances = _distances(smoothed_products(masks, spacing, smoothing))
        scores.append(distances[0, 1:].mean() - mean_off_diagonal(distances[1:, 1:]) / 2)
    return np.array(scores)


def kernel_scores_of_empty(observed: Bools, spacing: Spacing) -> Floats:
    """Return the kernel score of a forecast without lesions at each of SMOOTHINGS_MM."""
    products = [smoothed_products(observed[None], spacing, width) for width in SMOOTHINGS_MM]
    return np.sqrt(np.array(products)[:, 0, 0])


def _distances(products: Floats) -> Floats:
    norm = np.diag(products)
    return np.sqrt(np.maximum(norm[:, None] + norm - 2 * products, 0.0))

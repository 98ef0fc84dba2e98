"""Features of mixtures: a share of new lesions lies beside older ones, the rest anywhere.

A log-linear model multiplies its features, but shares of lesions add up. The logarithm of a sum of
two densities lets the model express both.
"""

import numpy as np

from lesioncast.arrays import Float32s, Floats, Mask, Spacing
from lesioncast.priors.spatial.inputs import Places
from lesioncast.priors.spatial.smoothing import smooth

# Standard deviations of the density beside older lesions in mm, and their shares of new lesions.
BESIDE_MM = (3.0, 7.0)
BESIDE_SHARES = (0.2, 0.4)
# In units of a density over about 10,000 voxels: keeps the logarithm finite.
_LEAST = 1e-9


def mixture_features(
    older: Mask, atlas: Float32s, white: Float32s | None, spacing: Spacing, at: Places
) -> Float32s:
    """Return the log densities of mixtures at the voxels `at` [n], [width x share, n].

    Each adds the density `atlas` [s, h, w] of other patients and one around the `older` lesions.
    Both are restricted to white matter where its probability `white` [s, h, w] is known.
    """
    tissue = np.ones(atlas.shape, np.float32) if white is None else white
    usual = _normalised(atlas * tissue)
    rows = []
    for sigma in BESIDE_MM:
        around = smooth(older.astype(np.float32), spacing, sigma) * tissue
        beside = _normalised(around) if around.any() else usual
        for share in BESIDE_SHARES:
            mixture = (1 - share) * usual.ravel()[at] + share * beside.ravel()[at]
            rows.append(np.log(mixture + _LEAST))
    return np.asarray(rows, np.float32)


def _normalised(weights: Float32s) -> Floats:
    """Return weights divided by their sum; zeros stay zeros."""
    total = float(weights.sum(dtype=np.float64))
    return np.asarray(weights / total if total > 0 else weights, np.float64)

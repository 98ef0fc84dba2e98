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


def around_lesions(older: Mask, spacing: Spacing) -> Float32s:
    """Return older lesions [s, h, w] smoothed by each of BESIDE_MM, [width, s, h, w]."""
    lesions = older.astype(np.float32)
    return np.stack([smooth(lesions, spacing, sigma) for sigma in BESIDE_MM])


def mixture_features(
    around: Float32s, atlas: Float32s, white: Float32s | None, at: Places
) -> Float32s:
    """Return the log densities of mixtures at the voxels `at` [n], [width x share, n].

    Each adds the density `atlas` [s, h, w] of other patients and one of `around` older lesions,
    [width, s, h, w]. Both are restricted to white matter where its probability `white` is known.
    """
    tissue = np.float32(1) if white is None else white
    usual = _normalised(atlas * tissue, at)
    rows = []
    for one in around:
        beside = _normalised(one * tissue, at) if one.any() else usual
        rows += [np.log((1 - share) * usual + share * beside + _LEAST) for share in BESIDE_SHARES]
    return np.asarray(rows, np.float32)


def _normalised(weights: Float32s, at: Places) -> Floats:
    """Return weights [s, h, w] divided by their sum, at voxels [n]; zeros stay zeros."""
    total = float(weights.sum(dtype=np.float64))
    here = weights.ravel()[at].astype(np.float64)
    return here / total if total > 0 else here

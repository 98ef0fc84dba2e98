"""Features of regions: where a patient's older lesions exceed those that other patients have.

Lesions are given as shares of voxels, so that masks and lesions seen in FLAIR are treated alike.
"""

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Float32s, Spacing
from lesioncast.priors.spatial.features.curves import join
from lesioncast.priors.spatial.inputs import Places
from lesioncast.priors.spatial.smoothing import smooth

# Widths at which the density of older lesions is compared with that of the atlas.
REGION_MM = (12.0, 25.0)
# Volume of older lesions, in mm3, that the comparison adds on both sides: with little lesion in a
# region, the ratio stays near 1.
REGION_SHRINKAGE_MM3 = 500.0
# Lesions without a preference that are added to those of the patient.
SIDE_SHRINKAGE = 10.0
# Distances from the middle of the atlas beyond this many standard deviations count as this many.
_FURTHEST = 2.0


def regional_excess(
    lesions: npt.NDArray[np.floating | np.bool_], atlas: Float32s, spacing: Spacing, at: Places
) -> Float32s:
    """Return the log ratio of lesions to what the atlas expects around, [width, n].

    `lesions` [s, h, w] are shares of lesion, `atlas` [s, h, w] the density of other patients.
    """
    pair = np.stack([lesions, atlas * lesions.sum()]).astype(np.float32)
    ratios = []
    for sigma in REGION_MM:
        # The integral of the smoothing kernel's shape: densities become volumes around a voxel.
        around = (2 * np.pi) ** 1.5 * sigma**3
        found, usual = smooth(pair, spacing, sigma).reshape(2, -1)[:, at] * around
        ratios.append(np.log((found + REGION_SHRINKAGE_MM3) / (usual + REGION_SHRINKAGE_MM3)))
    return join(*ratios)


def preferred_sides(weights: npt.NDArray[np.floating], atlas: Float32s, at: Places) -> Float32s:
    """Return how far each voxel lies on the side of each axis that a patient's lesions prefer.

    `weights` [s, h, w] sum to the patient's number of lesions. The result is [axis, n].
    """
    rows = []
    for axis, index in enumerate(np.unravel_index(at, atlas.shape)):
        others = tuple({0, 1, 2} - {axis})
        usual = atlas.sum(axis=others, dtype=np.float64)
        usual /= usual.sum()
        place = np.arange(len(usual))
        middle = usual @ place
        spread = max(np.sqrt(usual @ (place - middle) ** 2), 1e-6)
        side = np.clip((place - middle) / spread, -_FURTHEST, _FURTHEST)
        side -= usual @ side
        own = weights.sum(axis=others, dtype=np.float64)
        rows.append((own @ side / (own.sum() + SIDE_SHRINKAGE) * side)[index])
    return np.asarray(rows, np.float32)

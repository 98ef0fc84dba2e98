"""Densities of lesions that were measured in patients, and the weights that reproduce them.

The patients are those of the 3D MR image database of multiple sclerosis of the University of
Ljubljana (Lesjak et al., Neuroinformatics 2017, CC-BY): expert masks of T2 lesions, registered to
the MNI template.
"""

import numpy as np

from lesioncast.arrays import Float32s, Floats
from lesioncast.simulation.lesions.radii import ConfluentLesions, RadiusDistribution

# Edges of bins of the distance to the lateral ventricles, in mm.
VENTRICLE_BINS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 30.0)
# Density of lesion voxels in white matter relative to an even one, all patients pooled, [bin].
VOXEL_DENSITY = (4.0, 4.8, 4.5, 4.1, 3.6, 3.0, 2.3, 1.8, 1.4, 0.85, 0.41)
# The same if each lesion and each patient counts once, [bin], and beyond the last bin.
LESION_DENSITY = (4.6, 2.9, 2.3, 1.7, 1.7, 1.7, 1.7, 1.5, 1.2, 1.2, 0.72)

# Quartiles of the volume of a lesion in mm3 in 20 of these patients: components of at least 2
# voxels of 3 x 1 x 1 mm.
VOLUME_QUARTILES = (12.0, 27.0, 67.0)

# Radii that reproduce these volumes, and the share of volume in lesions beside the ventricles.
MEASURED_RADIUS = RadiusDistribution(
    1.52, 0.48, 0.8, 5.0, ConfluentLesions(RadiusDistribution(6.0, 0.3, 4.0, 12.0), 0.4, 5.0)
)

# Weights of a lesion's centre at distances to the ventricles and to the cortex in mm; log-linear
# between them. Fitted so that lesion voxels have the densities above. A centre's density differs
# from that of voxels, because lesions beside the ventricles are larger.
_VENTRICLE_MM = (1.5, 2.5, 3.5, 4.5, 5.5, 7.0, 9.0, 11.0, 13.5, 17.5, 25.0, 35.0)
_VENTRICLE_WEIGHT = (2.7, 5.9, 4.5, 2.7, 2.3, 2.0, 1.85, 1.93, 2.3, 2.8, 3.1, 0.12)
_CORTEX_MM = (0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0, 14.0)
_CORTEX_WEIGHT = (0.38, 0.62, 0.62, 1.0, 1.33, 2.1, 3.6, 1.5)


# The weights at multiples of this many mm; looking them up is cheaper than interpolating at voxels.
_STEP_MM = 0.25


def measured_weight(near: Float32s, depth: Float32s) -> Floats:
    """Return the weight of centres `near` mm from the ventricles and `depth` mm from the cortex."""
    return _look_up(near, _VENTRICLE_MM, _VENTRICLE_WEIGHT) * _look_up(
        depth, _CORTEX_MM, _CORTEX_WEIGHT
    )


def _look_up(mm: Float32s, knots: tuple[float, ...], weights: tuple[float, ...]) -> Floats:
    """Interpolate the logarithm of weights at distances, rounded to steps."""
    steps = np.arange(0.0, knots[-1] + _STEP_MM, _STEP_MM)
    table = np.exp(np.interp(steps, knots, np.log(weights)))
    rows = (mm * np.float32(1 / _STEP_MM) + np.float32(0.5)).astype(np.intp)
    return np.asarray(table[np.minimum(rows, len(table) - 1)])

"""Densities of lesions that were measured in patients, and the weights that reproduce them.

The patients are those of the 3D MR image database of multiple sclerosis of the University of
Ljubljana (Lesjak et al., Neuroinformatics 2017, CC-BY): expert masks of T2 lesions, registered to
the MNI template.
"""

import numpy as np

from lesioncast.arrays import Float32s, Floats

# Edges of bins of the distance to the lateral ventricles, in mm.
VENTRICLE_BINS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 30.0)
# Density of lesion voxels in white matter relative to an even one, all patients pooled, [bin].
VOXEL_DENSITY = (4.0, 4.8, 4.5, 4.1, 3.6, 3.0, 2.3, 1.8, 1.4, 0.85, 0.41)
# The same if each lesion and each patient counts once, [bin], and beyond the last bin.
LESION_DENSITY = (4.6, 2.9, 2.3, 1.7, 1.7, 1.7, 1.7, 1.5, 1.2, 1.2, 0.72)

# Weight of a lesion's centre at distances to the ventricles in mm; log-linear between them. A
# centre's density differs from that of voxels, because lesions beside the ventricles are larger.
_VENTRICLE_MM = (1.5, 2.5, 3.5, 4.5, 5.5, 7.0, 9.0, 11.0, 13.5, 17.5, 25.0, 35.0)
_VENTRICLE_WEIGHT = (4.3, 3.7, 3.2, 2.6, 2.5, 2.3, 2.0, 1.6, 1.3, 1.0, 0.54, 0.2)


def measured_weight(near: Float32s) -> Floats:
    """Return the weight of centres at the distance `near` to the ventricles, in mm."""
    return np.exp(np.interp(near, _VENTRICLE_MM, np.log(_VENTRICLE_WEIGHT)))

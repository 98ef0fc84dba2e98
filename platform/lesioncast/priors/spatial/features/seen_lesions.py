"""Features of lesions that the tissue classifier sees in FLAIR, for patients without T2 masks."""

import numpy as np

from lesioncast.arrays import Float32s, Spacing
from lesioncast.priors.spatial.features.curves import join
from lesioncast.priors.spatial.features.regions import preferred_sides, regional_excess
from lesioncast.priors.spatial.inputs import Places
from lesioncast.priors.spatial.smoothing import smooth

# A lesion's usual volume in mm3, by which a volume of lesions becomes a number.
_USUAL_MM3 = 200.0


def seen_lesion_features(
    lesions: Float32s, atlas: Float32s, spacing: Spacing, at: Places
) -> Float32s:
    """Return features at the voxels `at` [n] from probabilities of a lesion [s, h, w].

    `atlas` [s, h, w] is the density of lesions in other patients. The result is [feature, n].
    """
    here = lesions.ravel()[at]
    fine, middle, wide = (smooth(lesions, spacing, sigma).ravel()[at] for sigma in (3.0, 7.0, 16.0))
    number = lesions * np.float32(np.prod(spacing) / _USUAL_MM3)
    return join(
        here,
        np.log(here + 0.01),
        np.log(fine + 0.02),
        np.log(middle + 0.005),
        np.log(wide + 0.002),
        regional_excess(lesions, atlas, spacing, at),
        preferred_sides(number, atlas, at),
    )

"""Features of FLAIR: intensity in units of the patient's own tissue, dark and bright surroundings.

FLAIR is measured from the median of the brain, in units of the distance from there to the brain's
darkest two percent, which are fluid. So white matter is near 0 and fluid near -1 on any scanner.
"""

import numpy as np

from lesioncast.arrays import Float32s, Mask
from lesioncast.priors.spatial.features.curves import columns, hats
from lesioncast.priors.spatial.inputs import Places, Spacing, SpatialInputs
from lesioncast.priors.spatial.smoothing import smooth

INTENSITY_KNOTS = (-1.0, -0.6, -0.35, -0.15, 0.0, 0.15, 0.3, 0.5, 0.8)
_FLUID_SHARE = 2.0  # percent of the brain
_LEAST_CONTRAST = 0.05  # of the stored range: an image without contrast is not blown up
_RANGE = 3.0


def tissue_intensity(inputs: SpatialInputs, brain: Mask) -> Float32s | None:
    """Return FLAIR in units of the patient's own tissue, [session, s, h, w], 0 outside the brain.

    None if there is no FLAIR or no brain.
    """
    flairs = inputs.flairs()
    if not flairs or not brain.any():
        return None
    scaled = []
    for flair in flairs:
        inside = flair[brain]
        fluid, middle = np.percentile(inside, (_FLUID_SHARE, 50))
        unit = max(float(middle - fluid), _LEAST_CONTRAST)
        image = np.zeros(flair.shape, np.float32)
        image[brain] = np.clip((inside - middle) / unit, -_RANGE, _RANGE)
        scaled.append(image)
    return np.stack(scaled)


def flair_features(intensity: Float32s, spacing: Spacing, at: Places) -> Float32s:
    """Return features at the voxels `at` [n], [n, feature], from `tissue_intensity`."""
    image = intensity.mean(axis=0)
    change = intensity[-1] - intensity[0]
    dark = np.clip(-2 * image - 0.6, 0, 1)
    bright = np.clip(3 * image - 0.9, 0, 1)
    stack = np.stack([image, dark, bright, change])
    fine = smooth(stack, spacing, 4.0).reshape(4, -1)[:, at]
    wide = smooth(stack[:3], spacing, 9.0).reshape(3, -1)[:, at]
    widest = smooth(stack[1:3], spacing, 18.0).reshape(2, -1)[:, at]
    return columns(
        hats(image.ravel()[at], INTENSITY_KNOTS),
        image.ravel()[at] - fine[0],
        fine[0],
        *np.log(fine[1:3] + 0.02),
        wide[0],
        *np.log(wide[1:3] + 0.01),
        *np.log(widest + 0.005),
        change.ravel()[at],
        fine[3],
    )

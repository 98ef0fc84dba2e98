"""Features of FLAIR in units of the patient's own tissue: contrast, change and surroundings.

FLAIR is measured from the median of the brain, in units of the distance from there to the brain's
darkest two percent, which are fluid. So white matter is near 0 and fluid near -1 on any scanner.
"""

import numpy as np

from lesioncast.arrays import Float32s, Mask, Spacing
from lesioncast.priors.spatial.features.curves import hats, join
from lesioncast.priors.spatial.inputs import Places, SpatialInputs
from lesioncast.priors.spatial.smoothing import smooth

INTENSITY_KNOTS = (-1.0, -0.6, -0.35, -0.15, 0.0, 0.15, 0.3, 0.5, 0.8)
FLUID_KNOTS = (-0.7, -0.5, -0.3, -0.1)
_FLUID_SHARE = 2.0  # percent of the brain
_LEAST_CONTRAST = 0.05  # of the stored range: an image without contrast is not blown up
_RANGE = 3.0


def tissue_intensity(inputs: SpatialInputs, brain: Mask) -> Float32s:
    """Return FLAIR in units of the patient's own tissue, [session, s, h, w], 0 outside the brain.

    `brain` [s, h, w] is where FLAIR shows it. The patient has FLAIR of at least one session.
    """
    scaled = []
    for flair in inputs.flairs():
        inside = flair[brain]
        fluid, middle = np.percentile(inside, (_FLUID_SHARE, 50))
        unit = max(float(middle - fluid), _LEAST_CONTRAST)
        image = np.zeros(flair.shape, np.float32)
        image[brain] = np.clip((inside - middle) / unit, -_RANGE, _RANGE)
        scaled.append(image)
    return np.stack(scaled)


def flair_features(intensity: Float32s, spacing: Spacing, at: Places) -> Float32s:
    """Return intensity, local contrast and change at the voxels `at` [n], [feature, n].

    `intensity` is [session, s, h, w]. The change is 0 if there is one session alone. The curve of
    the intensity keeps lesions out of voxels that are partly fluid, whatever their tissue class.
    """
    image, change = intensity.mean(axis=0), intensity[-1] - intensity[0]
    stack = np.stack([image, change])
    here = stack.reshape(2, -1)[:, at]
    around = smooth(stack, spacing, 4.0).reshape(2, -1)[:, at]
    curve = hats(here[0], FLUID_KNOTS)
    return join(here[0] - around[0], around[0], curve, here[1], around[1])


def surroundings(intensity: Float32s, spacing: Spacing, at: Places) -> Float32s:
    """Return what stands in for tissue where it is unknown, [feature, n].

    It is a curve of the intensity, and how much dark fluid and bright grey matter is around.
    """
    image = intensity.mean(axis=0)
    dark = np.clip(-2 * image - 0.6, 0, 1)
    bright = np.clip(3 * image - 0.9, 0, 1)
    stack = np.stack([dark, bright])
    fine, middle, wide = (
        smooth(stack, spacing, sigma).reshape(2, -1)[:, at] for sigma in (4.0, 9.0, 18.0)
    )
    return join(
        hats(image.ravel()[at], INTENSITY_KNOTS),
        np.log(fine + 0.02),
        np.log(middle + 0.01),
        np.log(wide + 0.005),
    )

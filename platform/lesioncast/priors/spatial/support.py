"""The voxels in which a patient can have lesions: the brain, as far as the inputs show it."""

import numpy as np
from scipy import ndimage

from lesioncast.arrays import Mask
from lesioncast.priors.spatial.inputs import Shape, SpatialInputs

_BACKGROUND = -1.0  # FLAIR outside the head, or outside the brain if the skull was removed
_IN_PLANE = np.zeros((3, 3, 3), bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


def brain_support(inputs: SpatialInputs, shape: Shape) -> Mask:
    """Return where lesions are possible, [s, h, w].

    It is the parcellation, else what every FLAIR shows with the holes of each slice filled, else
    the whole volume. A dark voxel at the edge of the intensity range is such a hole.
    """
    if inputs.parcellation is not None and (inputs.parcellation > 0).any():
        return np.asarray(inputs.parcellation > 0)
    flairs = inputs.flairs()
    if not flairs:
        return np.ones(shape, bool)
    shown = np.logical_and.reduce([flair > _BACKGROUND for flair in flairs])
    shown = np.asarray(ndimage.binary_fill_holes(shown, _IN_PLANE))
    return shown if shown.any() else np.ones(shape, bool)

"""Features of tissue: probabilities of tissue classes, distances to ventricles and cortex."""

import numpy as np

from lesioncast.arrays import Float32s, Spacing
from lesioncast.imaging.regions import (
    CEREBELLAR_CORTEX,
    CEREBELLAR_WHITE_MATTER,
    CORTEX,
    CSF,
    VENTRICLE,
    WHITE_MATTER,
)
from lesioncast.priors.spatial.distance import distance_to
from lesioncast.priors.spatial.features.curves import hats, join
from lesioncast.priors.spatial.inputs import Labels, Places
from lesioncast.priors.spatial.smoothing import smooth

# FreeSurfer ids of each class. The inferior horns (5, 44) belong to the lateral ventricles; the
# third and fourth ventricle (14, 15) do not border on white matter and count as fluid.
_IDS = (
    (*WHITE_MATTER, *CEREBELLAR_WHITE_MATTER),
    (*CORTEX, *CEREBELLAR_CORTEX),
    (*VENTRICLE, 5, 44),
    (*CSF, 14, 15),
)
WHITE, GREY, VENTRICLES, FLUID, DEEP = range(5)
CLASSES = 5
"""White matter, cortex, lateral ventricles, other fluid, and all other labels."""

VENTRICLE_KNOTS_MM = (0.0, 2.0, 4.0, 6.0, 8.5, 12.0, 16.0, 22.0, 32.0)
CORTEX_KNOTS_MM = (0.0, 1.5, 3.0, 4.5, 6.5, 9.0, 13.0)
# Width of a new lesion: voxels beside white matter share its lesions at the resolution of a scan.
LESION_MM = 3.0


def classes_of(parcellation: Labels) -> Labels:
    """Return the class of each voxel, [s, h, w]; -1 outside the brain."""
    table = np.full(int(parcellation.max(initial=0)) + 1, DEEP, np.int8)
    for number, ids in enumerate(_IDS):
        table[[label for label in ids if label < len(table)]] = number
    table[0] = -1
    return np.asarray(table[np.maximum(parcellation, 0)])


def one_hot(classes: Labels) -> Float32s:
    """Return the probabilities of known classes [s, h, w], [class, s, h, w]."""
    return np.stack([classes == number for number in range(CLASSES)]).astype(np.float32)


def tissue_features(tissue: Float32s, spacing: Spacing, at: Places) -> Float32s:
    """Return features at the voxels `at` [n] from tissue probabilities [class, s, h, w].

    The result is [feature, n].
    """
    here = tissue.reshape(CLASSES, -1)[:, at]
    likely = tissue.argmax(axis=0)
    inside = tissue.any(axis=0)
    ventricles = distance_to(
        inside & (likely == VENTRICLES), spacing, furthest=VENTRICLE_KNOTS_MM[-1]
    )
    cortex = distance_to(inside & (likely == GREY), spacing, furthest=CORTEX_KNOTS_MM[-1])
    fine = smooth(tissue[[WHITE, VENTRICLES]], spacing, LESION_MM).reshape(2, -1)[:, at]
    wide = smooth(tissue[[WHITE, GREY, VENTRICLES]], spacing, 8.0).reshape(3, -1)[:, at]
    return join(
        *here,
        np.log(here[WHITE] + 0.02),
        np.log(fine[0] + 0.02),
        np.log(fine[1] + 0.01),
        *np.log(wide + 0.01),
        hats(ventricles.ravel()[at], VENTRICLE_KNOTS_MM),
        hats(cortex.ravel()[at], CORTEX_KNOTS_MM),
    )

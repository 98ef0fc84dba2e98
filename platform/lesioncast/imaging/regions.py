"""FreeSurfer ids of brain regions, and the regions in which lesions lie (paper, section 4.1)."""

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Bools

# FreeSurfer ids (left, right) as SynthSeg writes them. Fluid and brain stem have one id each.
WHITE_MATTER, CORTEX, VENTRICLE, DEEP_GREY = (2, 41), (3, 42), (4, 43), (10, 49)
CEREBELLAR_WHITE_MATTER, CEREBELLAR_CORTEX = (7, 46), (8, 47)
BRAIN_STEM, CSF = (16, 16), (24, 24)
FREESURFER_IDS = {
    "cerebral white matter": WHITE_MATTER,
    "cerebral cortex": CORTEX,
    "lateral ventricle": VENTRICLE,
    "deep grey matter": DEEP_GREY,
    "cerebellar white matter": CEREBELLAR_WHITE_MATTER,
    "cerebellar cortex": CEREBELLAR_CORTEX,
    "brain stem": BRAIN_STEM,
    "cerebrospinal fluid": CSF,
}

# The regions for which the paper forecasts whether a lesion appears.
REGIONS = {"white_matter": WHITE_MATTER, "cortex": CORTEX}


def lesions_in_regions(masks: Bools, labels: npt.NDArray[np.integer]) -> Bools:
    """Return True for each mask and region that share a lesion voxel, [k, region].

    `masks` is [k, s, h, w] and `labels` [s, h, w] the parcellation in FreeSurfer ids.
    """
    inside = np.stack([np.isin(labels, ids) for ids in REGIONS.values()])
    # A matrix product counts the shared voxels of all pairs at once; float32 uses fast BLAS and
    # rounds no count to 0.
    shared = masks.reshape(len(masks), -1).astype(np.float32) @ inside.reshape(
        len(inside), -1
    ).T.astype(np.float32)
    return np.asarray(shared > 0)

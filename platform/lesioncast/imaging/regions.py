"""Regions of the brain in which a lesion may lie (paper, section 4.1)."""

import numpy as np
import numpy.typing as npt

# FreeSurfer ids, left and right, as SynthSeg gives them.
REGIONS = {"white_matter": (2, 41), "cortex": (3, 42)}


def lesions_in_regions(
    masks: npt.NDArray[np.bool_], labels: npt.NDArray[np.integer]
) -> npt.NDArray[np.bool_]:
    """Whether each of `masks` [k, s, h, w] has a lesion voxel in each region, [k, region].

    `labels` [s, h, w] is the parcellation.
    """
    within = np.stack([np.isin(labels, ids) for ids in REGIONS.values()])
    touched = masks.reshape(len(masks), -1).astype(np.float32) @ within.reshape(
        len(within), -1
    ).T.astype(np.float32)
    return np.asarray(touched > 0)

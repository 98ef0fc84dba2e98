"""FreeSurfer ids of brain regions, and the regions in which lesions lie (paper, section 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Bools, Ints, Mask
from lesioncast.imaging.lesions import components

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


@dataclass(frozen=True)
class RegionalLesions:
    """Lesions and lesion voxels of a mask, in all and by region.

    A lesion is `touching` [region] a region in which it has a voxel; `inside` [region] are voxels.
    """

    lesions: int
    voxels: int
    touching: Ints
    inside: Ints


def regional_lesions(mask: Mask, labels: npt.NDArray[np.integer]) -> RegionalLesions:
    """Return the lesions of a mask [s, h, w] by region; `labels` as in `lesions_in_regions`."""
    numbers, lesions = components(mask)
    found = [numbers[mask & np.isin(labels, ids)] for ids in REGIONS.values()]
    return RegionalLesions(
        lesions=lesions,
        voxels=int(mask.sum()),
        touching=np.array([len(np.unique(of_region)) for of_region in found], np.int64),
        inside=np.array([len(of_region) for of_region in found], np.int64),
    )


def touching_ratios(cases: Sequence[RegionalLesions]) -> dict[str, float]:
    """Return how many times each region's share of lesions exceeds its share of lesion voxels.

    A region without lesion voxels has 1. Without any lesion there are no ratios.
    """
    lesions, voxels = sum(case.lesions for case in cases), sum(case.voxels for case in cases)
    if not lesions:
        return {}
    touching = np.sum([case.touching for case in cases], axis=0) / lesions
    inside = np.sum([case.inside for case in cases], axis=0) / voxels
    ratios = np.divide(touching, inside, out=np.ones(len(REGIONS)), where=inside > 0)
    return dict(zip(REGIONS, ratios.tolist(), strict=True))

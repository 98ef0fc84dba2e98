"""Measure a case: features of its images, and its observed outcome."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Bools, Floats, Mask
from lesioncast.evaluation.metrics.mask_comparison import ObservedMask
from lesioncast.imaging.channels import CURRENT, OUTCOME
from lesioncast.imaging.features.appearance import appearance_features
from lesioncast.imaging.features.image_features import CaseImages, image_features, mask_of
from lesioncast.imaging.lesions import LesionCounts, components, count_lesions
from lesioncast.imaging.regions import lesions_in_regions


@dataclass(frozen=True)
class CaseMeasurements:
    """Features and outcome of one case."""

    #: Index of the case in the store.
    case: int
    #: Values [feature] of `IMAGE_FEATURES`.
    image_features: Floats
    #: NET2 lesions at outcome; None if they were not observed.
    outcome: LesionCounts | None
    #: Values [feature] of `APPEARANCE_FEATURES`.
    appearance: Floats
    #: Number of NET2 lesions at the current session; None if they were not observed.
    net2_count_current: int | None = None
    #: True for each region with a NET2 lesion at outcome, [region]; None if unknown.
    regions: Bools | None = None
    #: Flat indices of the voxels of NET2 at outcome; None if it was not observed.
    net2_voxels: npt.NDArray[np.int32] | None = None


def measure_case(
    case: int, arrays: CaseImages, spacing: tuple[float, float, float]
) -> CaseMeasurements:
    """Measure features and outcome of one case with voxels of `spacing` (s, h, w) mm."""
    observed = observed_outcome(arrays)
    net2_current = mask_of(arrays, CURRENT, "net2")
    return CaseMeasurements(
        case=case,
        image_features=image_features(arrays, spacing),
        outcome=None if observed is None else count_lesions(observed.net2, spacing),
        net2_count_current=None if net2_current is None else components(net2_current)[1],
        regions=None
        if observed is None or observed.parcellation is None
        else lesions_in_regions(observed.net2[None], observed.parcellation)[0],
        appearance=appearance_features(arrays.flair, arrays.present, spacing),
        net2_voxels=None if observed is None else lesion_voxels(observed.net2),
    )


def lesion_voxels(mask: Mask) -> npt.NDArray[np.int32]:
    """Return the flat indices of a mask's lesion voxels: a mask in little memory."""
    return np.flatnonzero(mask).astype(np.int32)


def observed_outcome(arrays: CaseImages) -> ObservedMask | None:
    """Return the NET2 mask at outcome and any parcellation; None if it was not observed."""
    net2 = mask_of(arrays, OUTCOME, "net2")
    if net2 is None:
        return None
    return ObservedMask(net2, arrays.parcellation if arrays.parcellation.any() else None)

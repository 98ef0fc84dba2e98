"""Measure a case: image features for simple baselines, and its observed outcome."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Bools, Floats, LabelMap, Mask
from lesioncast.evaluation.features.appearance import appearance_features
from lesioncast.evaluation.metrics.mask_comparison import ObservedMask
from lesioncast.imaging.channels import BASELINE, CHANNELS, CURRENT, MASKS, OUTCOME, SESSIONS
from lesioncast.imaging.lesions import LesionCounts, components, count_lesions
from lesioncast.imaging.regions import lesions_in_regions
from storage.layout import head_mask

FLAIR = CHANNELS.index("flair")
# Robust standard deviations above the median difference current - baseline that count as a rise.
MIN_RISE_SD = 3.0
LESION_CHANNELS = (
    (BASELINE, "t2"),
    (CURRENT, "t2"),
    (BASELINE, "gad"),
    (CURRENT, "gad"),
    (CURRENT, "net2"),
)
IMAGE_FEATURES = (
    *(f"{channel}_volume_{session}" for session, channel in LESION_CHANNELS),
    *(f"{channel}_count_{session}" for session, channel in LESION_CHANNELS),
    "flair_gain",
)
# Columns of the features that are measured before treatment.
BASELINE_FEATURES = tuple(
    column for column, name in enumerate(IMAGE_FEATURES) if name.endswith(f"_{BASELINE}")
)


class CaseImages(Protocol):
    """The arrays of a case that are measured; `storage.CaseArrays` has them.

    FLAIR [session, s, h, w], masks [session, kind, s, h, w], parcellation [s, h, w] and present
    [session, channel].
    """

    @property
    def flair(self) -> npt.NDArray[np.float16]: ...
    @property
    def masks(self) -> npt.NDArray[np.uint8]: ...
    @property
    def parcellation(self) -> LabelMap: ...
    @property
    def present(self) -> Bools: ...


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
    net2_current = _mask(arrays, CURRENT, "net2")
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
    net2 = _mask(arrays, OUTCOME, "net2")
    if net2 is None:
        return None
    return ObservedMask(net2, arrays.parcellation if arrays.parcellation.any() else None)


def image_features(arrays: CaseImages, spacing: tuple[float, float, float]) -> Floats:
    """Return log(1 + x) of lesion volumes (mm3), lesion counts and the FLAIR gain, [feature].

    The names are `IMAGE_FEATURES`. A feature is NaN if the case lacks its channel. Images of the
    outcome are not read.
    """
    voxel_mm3 = float(np.prod(spacing))
    masks = [_mask(arrays, *channel) for channel in LESION_CHANNELS]
    values = [
        *(_measure_mask(mask, lambda mask: voxel_mm3 * float(mask.sum())) for mask in masks),
        *(_measure_mask(mask, lambda mask: components(mask)[1]) for mask in masks),
        _flair_gain(arrays, voxel_mm3),
    ]
    return np.log1p(np.array(values, np.float64))


def _mask(arrays: CaseImages, session: str, channel: str) -> Mask | None:
    """Return a lesion mask of a session, or None if the case lacks it."""
    row = SESSIONS.index(session)
    if not arrays.present[row, CHANNELS.index(channel)]:
        return None
    return np.asarray(arrays.masks[row, MASKS.index(channel)], bool)


def _measure_mask(mask: Mask | None, measure: Callable[[Mask], float]) -> float:
    return np.nan if mask is None else measure(mask)


def _flair_gain(arrays: CaseImages, voxel_mm3: float) -> float:
    """Return the unusual rise of FLAIR from baseline to the current session, in mm3 x robust sd.

    The median rise over the head is subtracted first, because it is the scanner's overall change
    between the sessions.
    """
    first, second = SESSIONS.index(BASELINE), SESSIONS.index(CURRENT)
    if not (arrays.present[first, FLAIR] and arrays.present[second, FLAIR]):
        return np.nan
    before, after = (arrays.flair[row].astype(np.float32) for row in (first, second))
    rise = (after - before)[head_mask(before) & head_mask(after)]
    if not rise.size:
        return 0.0
    rise -= np.median(rise)
    # 1.4826 turns the median absolute deviation into the standard deviation of a normal variable.
    robust_sd = 1.4826 * np.median(np.abs(rise)) + 1e-6
    return float(voxel_mm3 * np.clip(rise / robust_sd - MIN_RISE_SD, 0, None).sum())

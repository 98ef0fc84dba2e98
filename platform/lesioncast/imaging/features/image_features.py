"""Measure features of a case's lesions: volumes and counts by mask, and what FLAIR gained."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Bools, Floats, LabelMap, Mask
from lesioncast.imaging.channels import BASELINE, CHANNELS, CURRENT, MASKS, SESSIONS
from lesioncast.imaging.lesions import components
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


def image_features(arrays: CaseImages, spacing: tuple[float, float, float]) -> Floats:
    """Return log(1 + x) of lesion volumes (mm3), lesion counts and the FLAIR gain, [feature].

    The names are `IMAGE_FEATURES`. A feature is NaN if the case lacks its channel. Images of the
    outcome are not read.
    """
    voxel_mm3 = float(np.prod(spacing))
    masks = [mask_of(arrays, *channel) for channel in LESION_CHANNELS]
    values = [
        *(_measure_mask(mask, lambda mask: voxel_mm3 * float(mask.sum())) for mask in masks),
        *(_measure_mask(mask, lambda mask: components(mask)[1]) for mask in masks),
        _flair_gain(arrays, voxel_mm3),
    ]
    return np.log1p(np.array(values, np.float64))


def mask_of(arrays: CaseImages, session: str, channel: str) -> Mask | None:
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

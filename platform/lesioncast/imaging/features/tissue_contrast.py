"""Measure the contrast of tissues in one FLAIR image as ratios, which no gain of a scanner changes.

The store scales intensities, and records the raw values that became -1 and 1. Ratios are of the raw
values. Medians by tissue need a parcellation.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Floats, LabelMap, Mask
from lesioncast.imaging.regions import CORTEX, CSF, VENTRICLE, WHITE_MATTER

CONTRAST_FEATURES = ("dark_over_bright", "grey_over_white", "fluid_over_white", "noise_in_white")
# Tissues of fewer voxels have no median.
_MIN_VOXELS = 20


@dataclass(frozen=True)
class RawRange:
    """Raw values of an image that the store scaled to -1 and 1."""

    low: float
    high: float

    def raw(self, flair: npt.NDArray[np.float16]) -> Floats:
        """Return the raw values of a stored image."""
        scaled: Floats = flair.astype(np.float64)
        return self.low + (scaled + 1) / 2 * (self.high - self.low)


def contrast_features(
    flair: npt.NDArray[np.float16], parcellation: LabelMap, limits: RawRange
) -> Floats:
    """Return the features named in `CONTRAST_FEATURES` of an image [s, h, w], [feature].

    In order: raw value at -1 relative to that at 1; median of cortex and of fluid relative to white
    matter; median absolute second difference along rows within white matter, relative to its
    median. The last three are NaN without white matter in the parcellation, which is all zeros if
    the case has none.
    """
    image = limits.raw(flair)
    white, grey, fluid = (
        np.isin(parcellation, ids) for ids in (WHITE_MATTER, CORTEX, (*VENTRICLE, *CSF))
    )
    level = _median(image, white)
    rough = np.abs(image[:, :, :-2] - 2 * image[:, :, 1:-1] + image[:, :, 2:])
    within = white[:, :, :-2] & white[:, :, 1:-1] & white[:, :, 2:]
    values = (limits.low, _median(image, grey), _median(image, fluid), _median(rough, within))
    levels = (limits.high, level, level, level)
    return np.array(
        [value / level if level else np.nan for value, level in zip(values, levels, strict=True)]
    )


def _median(image: Floats, tissue: Mask) -> float:
    return float(np.median(image[tissue])) if tissue.sum() >= _MIN_VOXELS else np.nan

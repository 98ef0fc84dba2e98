"""Scale FLAIR intensities to [-1, 1], independent of the scanner."""

from typing import Any

import numpy as np
import numpy.typing as npt

from storage.layout import BACKGROUND


def intensity_range(
    image: npt.NDArray[Any],
    tissue: npt.NDArray[np.bool_],
    *,
    percentiles: tuple[float, float],
) -> tuple[float, float]:
    """Return two percentiles (numpy's linear definition) of the tissue of the whole volume.

    The whole volume is used so that a voxel's value does not depend on where the slab is cut.
    Raises ValueError if there is no tissue or both percentiles are equal.
    """
    values = image[tissue].astype(np.float32)
    if not values.size:
        raise ValueError("expected voxels of tissue, got none")
    low, high = np.percentile(values, percentiles)
    if not high > low:
        raise ValueError(f"expected contrast, got {low:g} at both percentiles {percentiles}")
    return float(low), float(high)


def scale_flair(
    image: npt.NDArray[Any], shown: npt.NDArray[np.bool_], *, limits: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Map the two `limits` of `intensity_range` linearly to -1 and 1, and clip.

    Voxels that are not `shown` become -1.
    """
    low, high = np.array(limits, np.float32)
    scaled = image.astype(np.float32)
    scaled -= low
    scaled *= 2 / (high - low)
    scaled -= 1
    np.clip(scaled, -1, 1, out=scaled)
    scaled[~shown] = BACKGROUND
    return scaled

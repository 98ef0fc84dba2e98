"""Find and count the lesions of a binary mask (paper, section 4.3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lesioncast.arrays import Mask
from storage.layout import CONNECTIVITY_26

OPENING_MM = 5.0


@dataclass(frozen=True)
class LesionCounts:
    """Number and volume of the lesions of one mask."""

    #: Number of lesions in the mask as it is.
    plain: int
    #: Number of lesions after the morphological opening.
    opened: int
    #: Total volume in mm3, without opening.
    volume: float


def lesion_load_voxels(
    volumes: Sequence[float], spacing: tuple[float, float, float]
) -> tuple[int, ...]:
    """Return the least number of voxels of `spacing` mm in each lesion load class.

    `volumes` are the least volumes of the classes in mm3. The first is 0: one voxel of lesion is
    enough. Raises ValueError if they do not rise by a voxel each.
    """
    voxel = math.prod(spacing)
    # A multiple of the voxel must not be rounded up because of the last bit of a float.
    voxels = tuple(max(1, math.ceil(volume / voxel - 1e-9)) for volume in volumes)
    if volumes and (volumes[0] != 0 or list(voxels) != sorted(set(voxels))):
        raise ValueError(
            f"lesion_load_mm3: expected volumes that rise from 0 by {voxel:g} mm3, a voxel, or "
            f"more, got {list(volumes)}; use for example [0, 300, 1000, 3000]"
        )
    return voxels


def opening_element(spacing: Sequence[float]) -> tuple[int, int, int]:
    """Return the size in voxels of the paper's 1 x 5 x 5 opening element for any voxel size.

    `spacing` (s, h, w) is in mm. The paper's voxels are 1 mm in-plane, so its 5 voxels are 5 mm.
    Each side is the odd number of voxels nearest to 5 mm (the larger on a tie) and at least 1,
    which opens nothing.
    """
    _, h, w = spacing
    return 1, _nearest_odd(OPENING_MM / h), _nearest_odd(OPENING_MM / w)


def _nearest_odd(length: float) -> int:
    return 2 * int(length // 2) + 1


def morphological_opening(mask: Mask, spacing: Sequence[float]) -> Mask:
    """Remove the parts of `mask` [s, h, w] that are narrower in-plane than the opening element."""
    element = opening_element(spacing)
    if element == (1, 1, 1):
        return mask
    return np.asarray(ndimage.binary_opening(mask, np.ones(element, bool)))


def components(mask: Mask) -> tuple[npt.NDArray[np.int32], int]:
    """Label the 26-connected components of `mask`: (labels [s, h, w], number of lesions)."""
    labels, number = ndimage.label(mask, CONNECTIVITY_26)
    return labels, int(number)


def lesion_count(mask: Mask, spacing: Sequence[float], *, opening: bool = False) -> int:
    """Return the number of lesions in `mask` [s, h, w], optionally after the opening."""
    return components(morphological_opening(mask, spacing) if opening else mask)[1]


def count_lesions(mask: Mask, spacing: Sequence[float]) -> LesionCounts:
    """Return both lesion counts and the total volume of `mask` [s, h, w]."""
    return LesionCounts(
        plain=lesion_count(mask, spacing),
        opened=lesion_count(mask, spacing, opening=True),
        volume=float(mask.sum() * np.prod(spacing)),
    )

"""Lesions of a binary mask: components, opening, counts and volumes (paper, section 4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]

OPENING_MM = 5.0
CONNECTIVITY_26 = np.ones(
    (3, 3, 3), bool
)  # 26 neighbours: voxels that share a corner are one lesion


@dataclass(frozen=True)
class LesionCounts:
    """What is counted of one mask: lesions as drawn, lesions after the opening, volume in mm3."""

    plain: int
    opened: int
    volume: float


def opening_element(spacing: Sequence[float]) -> tuple[int, int, int]:
    """The paper's 1 x 5 x 5 element for voxels of `spacing` (s, h, w) in mm, in voxels.

    The paper's voxels are 1 mm in-plane, so 5 voxels are 5 mm: each side is the odd number of
    voxels nearest to that (the larger on a tie), never below 1, which opens nothing.
    """
    _, h, w = spacing
    return 1, _nearest_odd(OPENING_MM / h), _nearest_odd(OPENING_MM / w)


def _nearest_odd(length: float) -> int:
    return 2 * int(length // 2) + 1


def morphological_opening(mask: Mask, spacing: Sequence[float]) -> Mask:
    """`mask` [s, h, w] without what the in-plane opening element cannot enter."""
    element = opening_element(spacing)
    if element == (1, 1, 1):
        return mask
    return np.asarray(ndimage.binary_opening(mask, np.ones(element, bool)))


def components(mask: Mask) -> tuple[npt.NDArray[np.int32], int]:
    """(labels [s, h, w], number of lesions): the 26-connected components of `mask`."""
    labels, number = ndimage.label(mask, CONNECTIVITY_26)
    return labels, int(number)


def lesion_count(mask: Mask, spacing: Sequence[float], *, opening: bool = False) -> int:
    """Number of lesions in `mask` [s, h, w], opened first or as it is."""
    return components(morphological_opening(mask, spacing) if opening else mask)[1]


def lesion_volumes(mask: Mask, spacing: Sequence[float]) -> npt.NDArray[np.float64]:
    """Volume of each lesion of `mask` [s, h, w] in mm3, in the order of their labels."""
    labels, number = components(mask)
    voxels = np.bincount(labels.ravel(), minlength=number + 1)[1:]
    return voxels.astype(np.float64) * float(np.prod(spacing))


def count_lesions(mask: Mask, spacing: Sequence[float]) -> LesionCounts:
    """Both counts and the total volume of `mask` [s, h, w]."""
    return LesionCounts(
        plain=lesion_count(mask, spacing),
        opened=lesion_count(mask, spacing, opening=True),
        volume=float(mask.sum() * np.prod(spacing)),
    )

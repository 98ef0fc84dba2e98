"""Measure which lesions of a mask reach the slab, and which are lost on the way.

A lesion is a 26-connected component of the source mask. The slab takes the nearest source voxel for
each of its own voxels, so a lesion reaches the slab if one of its voxels is taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from storage.layout import CONNECTIVITY_26, OUTCOME, Array
from storage.preprocess.grid import SlabGrid, covered_indices

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LesionTransfer:
    """Lesions of one mask in its source and on the slab's grid, and what was lost between them."""

    source_count: int = 0
    source_mm3: float = 0.0
    #: Lesions on the slab. Two that touch only there are one, and a divided one is two.
    grid_count: int = 0
    grid_mm3: float = 0.0
    #: Source lesions without a voxel in the slab.
    outside_count: int = 0
    #: Volume of all source voxels beyond the slab, with the parts of lesions that its border cuts.
    outside_mm3: float = 0.0
    #: Source lesions that the slab's border cuts. They are kept if a voxel inside is taken.
    cut_count: int = 0
    #: Source lesions in the slab of which resampling took no voxel, because they are too small.
    resampling_count: int = 0
    resampling_mm3: float = 0.0

    @property
    def lost_count(self) -> int:
        """Return the number of source lesions that have no voxel on the slab."""
        return self.outside_count + self.resampling_count

    @property
    def all_lost(self) -> bool:
        """Return whether there were lesions and none is left."""
        return self.source_count > 0 and self.grid_count == 0

    @property
    def causes(self) -> str:
        """Return the losses by cause in words, such as `2 outside the slab`."""
        losses = (
            (self.outside_count, "outside the slab"),
            (self.resampling_count, "smaller than a voxel"),
        )
        return ", ".join(f"{count} {cause}" for count, cause in losses if count)


def lost_outcome(lesions: Mapping[str, LesionTransfer]) -> LesionTransfer | None:
    """Return the loss of a case whose new lesions at outcome are all lost, None for other cases.

    `lesions` are the transfers of a case by the role of their mask, such as w048/net2.
    """
    transfer = lesions.get(f"{OUTCOME}/net2")
    return transfer if transfer is not None and transfer.all_lost else None


def measure_transfer(source: Array, slab: Array, grid: SlabGrid) -> LesionTransfer:
    """Compare a source mask (s, h, w) with the same mask on the slab."""
    if not source.any():
        return LesionTransfer()
    labels, voxels, count = _label(source)
    taken, inside = np.ones((2, len(labels)), bool)
    for axis, indices in enumerate(voxels):
        is_taken, is_inside = covered_indices(grid, axis)
        taken &= is_taken[indices]
        inside &= is_inside[indices]
    voxels_of, inside_of, taken_of = (
        np.bincount(labels[chosen], minlength=count + 1)[1:]
        for chosen in (slice(None), inside, taken)
    )
    voxel_mm3 = float(np.prod(grid.header.spacing))
    small = (inside_of > 0) & (taken_of == 0)
    # A crop without a cut changes no lesion, and the slab need not be labelled.
    unchanged = grid.is_crop and bool(inside.all())
    return LesionTransfer(
        source_count=count,
        source_mm3=round(len(labels) * voxel_mm3, 3),
        grid_count=count if unchanged else _label(slab)[2] if slab.any() else 0,
        grid_mm3=round(float(np.count_nonzero(slab)) * voxel_mm3 * float(np.prod(grid.scale)), 3),
        outside_count=int(np.count_nonzero(inside_of == 0)),
        outside_mm3=round(float(np.count_nonzero(~inside)) * voxel_mm3, 3),
        cut_count=int(np.count_nonzero((inside_of > 0) & (inside_of < voxels_of))),
        resampling_count=int(np.count_nonzero(small)),
        resampling_mm3=round(float(voxels_of[small].sum()) * voxel_mm3, 3),
    )


def _label(mask: Array) -> tuple[Ints, tuple[Ints, ...], int]:
    """Return the label and the indices (s, h, w) of each lesion voxel, and the number of lesions.

    Only the box around the lesions is labelled, because most of a volume holds none.
    """
    lesion = mask != 0  # flags are searched ten times as fast as numbers
    voxels = np.unravel_index(np.flatnonzero(lesion), mask.shape)
    low = [int(indices.min()) for indices in voxels]
    box = tuple(
        slice(first, int(indices.max()) + 1) for first, indices in zip(low, voxels, strict=True)
    )
    labels, count = ndimage.label(lesion[box], CONNECTIVITY_26)
    in_box = tuple(indices - first for first, indices in zip(low, voxels, strict=True))
    return np.asarray(labels[in_box], np.int64), voxels, int(count)

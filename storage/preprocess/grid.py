"""Between a subject's own grid and the slab of the store.

Both directions go through the canonical volume (s, h, w), axis by axis: voxel i of the slab lies
at index `offset + scale * i` of the volume. Where a scale is 1 the offset is a whole number, and
that axis is cropped and padded exactly; along the others images are interpolated linearly (after a
Gaussian low-pass where voxels grow) and masks take the nearest voxel.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from scipy.ndimage import affine_transform, gaussian_filter1d

from storage.nifti.io import Matrix, NiftiGeometry, Volume, as_matrix, image_like
from storage.preprocess.validation import same_spacing
from storage.settings import StoreSettings

Sizes = tuple[int, int, int]
Numbers = tuple[float, float, float]
Array = npt.NDArray[Any]

# Tissue of a head, against air: brighter than this share of the 99.5th percentile.
_TISSUE_SHARE = 0.1
# Share of the voxels on each side that a bounding box may leave out, against stray voxels.
_STRAY_SHARE = 0.005


@dataclass(frozen=True)
class SlabGrid:
    """Where a slab lies in its source, whose own grid `header` keeps.

    `shape` is that of the canonical source (s, h, w), `slab` that of the store; `scale` and
    `offset` give the line of indices along each of these axes.
    """

    header: NiftiGeometry
    shape: Sizes
    slab: Sizes
    scale: Numbers
    offset: Numbers

    @property
    def is_crop(self) -> bool:
        """Whether the slab is a mere crop of the source."""
        return self.scale == (1.0, 1.0, 1.0)

    @property
    def slab_affine(self) -> Matrix:
        """Takes (w, h, s) indices of the slab to RAS+ mm."""
        step = np.diag([*self.scale[::-1], 1.0])
        step[:3, 3] = self.offset[::-1]
        return as_matrix(self.header.canonical_affine @ step)


def place_slab(volume: Volume, *, settings: StoreSettings, brain: Array | None) -> SlabGrid:
    """Choose where the store's slab lies in `volume`, a subject's w048 FLAIR.

    With a brain mask (on the volume's voxels) the slab's centre is at `brain_height` of the box
    around the brain, and in plane in the middle of the box around its part in the slab. Without one
    the slab takes the central slices; in plane an axis that must be cropped is centred on the box
    around the tissue in these slices, and an axis that fits is padded evenly.
    """
    slab, spacing = settings.slab, settings.spacing
    sizes = volume.data.shape
    scale = tuple(
        1.0 if same_spacing(own, wanted) else wanted / own
        for own, wanted in zip(volume.spacing, spacing, strict=True)
    )
    middle = _middle(sizes[0])
    height = middle if brain is None else _position_in_box(brain, settings.brain_height, axis=0)
    offset = [_offset(height, scale=scale[0], size=slab[0])]
    shown = _tissue(volume.data) if brain is None else brain != 0
    shown = shown[_covered_slices(offset[0], scale=scale[0], size=slab[0], source=sizes[0])]
    for axis in (1, 2):
        fits = brain is None and scale[axis] * slab[axis] >= sizes[axis]
        centre = _middle(sizes[axis]) if fits else _position_in_box(shown, 0.5, axis=axis)
        offset.append(_offset(centre, scale=scale[axis], size=slab[axis]))
    return SlabGrid(volume.header, sizes, slab, _three(scale), _three(offset))


def _three(values: Iterable[float]) -> Numbers:
    s, h, w = values
    return s, h, w


def _middle(size: int) -> float:
    return (size - 1) / 2


def _offset(centre: float, *, scale: float, size: int) -> float:
    offset = centre - scale * _middle(size)
    return float(math.floor(offset)) if scale == 1.0 else offset


def _covered_slices(offset: float, *, scale: float, size: int, source: int) -> slice:
    last = round(offset + scale * (size - 1))
    return slice(min(max(round(offset), 0), source - 1), max(last, 0) + 1)


def _tissue(image: Array) -> Array:
    return np.asarray(image > _TISSUE_SHARE * np.percentile(image, 99.5))


def _position_in_box(shown: Array, part: float, *, axis: int) -> float:
    """The index at a `part` of the box around `shown`; the array's middle where nothing is."""
    share = np.cumsum(shown.sum(axis=_others(axis)), dtype=np.float64)
    if not share[-1]:
        return _middle(shown.shape[axis])
    share /= share[-1]
    first, last = np.searchsorted(share, (_STRAY_SHARE, 1 - _STRAY_SHARE))
    return float(first + part * (last - first))


def to_slab(data: Array, grid: SlabGrid, *, order: int, fill: float = 0) -> Array:
    """Bring a canonical volume (s, h, w) onto the slab; `fill` is put outside the source's field.

    `order` 1 interpolates (floats), 0 takes the nearest voxel (masks and labels).
    """
    for axis, (scale, offset) in enumerate(zip(grid.scale, grid.offset, strict=True)):
        if order and scale > 1:  # else voxels that no line of the slab meets would be lost
            data = gaussian_filter1d(data, (scale - 1) / 2, axis=axis, mode="nearest")
        positions = offset + scale * np.arange(grid.slab[axis])
        data = _resample_axis(data, positions, axis=axis, order=order, fill=fill)
    return data


def resample_labels(volume: Volume, grid: SlabGrid) -> Array:
    """Labels that lie on a grid of their own, at the nearest voxel to each of the slab's; 0 where
    the volume does not reach.

    Straight from one grid to the other: by way of the source's each label could move twice.
    """
    from_slab = np.linalg.inv(volume.affine) @ np.array(grid.slab_affine)
    order = (2, 1, 0)  # affines have (w, h, s), arrays (s, h, w)
    turn = from_slab[:3, :3][np.ix_(order, order)]
    shift = from_slab[:3, 3][list(order)]
    nearest = affine_transform(
        volume.data, turn, shift, output_shape=grid.slab, order=0, mode="grid-constant", cval=0
    )
    return np.asarray(nearest)


def to_source_grid(volume: Array, grid: SlabGrid, *, order: int) -> nib.Nifti1Image:
    """Put a slab's volume [s, h, w] back onto its source file's own grid, affine and codes.

    Exact where the slab is a crop of the source; else interpolated (`order` 1, for probabilities,
    as float32) or nearest (`order` 0, for masks and labels; booleans become uint8). Zero outside
    the slab. Raises ValueError where `volume` has not the slab's shape.
    """
    if volume.shape != grid.slab:
        raise ValueError(f"expected a volume of the slab's shape {grid.slab}, got {volume.shape}")
    data = volume.astype(np.float32 if order else np.promote_types(volume.dtype, np.uint8))
    for axis, (scale, offset) in enumerate(zip(grid.scale, grid.offset, strict=True)):
        positions = (np.arange(grid.shape[axis]) - offset) / scale
        data = _resample_axis(data, positions, axis=axis, order=order, fill=0)
    return image_like(grid.header, _to_file_axes(data.transpose(2, 1, 0), grid.header))


def _to_file_axes(canonical: Array, header: NiftiGeometry) -> Array:
    """Voxels (w, h, s) in RAS+ order turned back to the file's own axes (i, j, k)."""
    back = ornt_transform(axcodes2ornt("RAS"), header.orientation)
    return np.ascontiguousarray(apply_orientation(canonical, back))


def _resample_axis(data: Array, positions: Array, *, axis: int, order: int, fill: float) -> Array:
    """Values of `data` at fractional indices along one axis, `fill` outside its field.

    The field ends half a voxel beyond the first and last centres; between them it is constant.
    """
    size = data.shape[axis]
    inside = np.clip(positions, 0, size - 1)
    if order == 0 or np.array_equal(positions, np.floor(positions)):
        out = data.take(np.floor(inside + 0.5).astype(int), axis=axis)
    else:
        low = np.floor(inside).astype(int)
        weight = np.expand_dims((inside - low).astype(data.dtype), _others(axis))
        high = np.minimum(low + 1, size - 1)
        out = data.take(low, axis=axis) * (1 - weight) + data.take(high, axis=axis) * weight
    outside = (positions < -0.5) | (positions >= size - 0.5)
    out[(slice(None),) * axis + (outside,)] = fill
    return np.asarray(out)


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)

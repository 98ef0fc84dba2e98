"""Place a slab in a subject's own grid and resample volumes between the two.

Both directions use the canonical volume (s, h, w) and treat each axis by itself. Voxel i of the
slab lies at index `offset + scale * i` of the volume. Where the scale is 1 the offset is a whole
number, and the axis is cropped and padded exactly. Along other axes images are interpolated
linearly, after a Gaussian low-pass if voxels grow, and masks take the nearest voxel.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from scipy.ndimage import affine_transform, gaussian_filter1d

from storage.layout import Array
from storage.nifti.affine import Matrix, as_matrix
from storage.nifti.io import NiftiGeometry, Volume, image_like
from storage.preprocess.tissue import tissue_mask
from storage.preprocess.validation import same_spacing
from storage.settings import StoreSettings

Sizes = tuple[int, int, int]
Numbers = tuple[float, float, float]

# Share of the voxels at each end of an axis that a bounding box ignores as stray.
_STRAY_SHARE = 0.005


@dataclass(frozen=True)
class SlabGrid:
    """Position of a slab in its source; `header` is the geometry of the source file.

    `shape` is the shape of the canonical source (s, h, w) and `slab` that of the slab. `scale` and
    `offset` map indices of the slab to indices of the source along each axis.
    """

    header: NiftiGeometry
    shape: Sizes
    slab: Sizes
    scale: Numbers
    offset: Numbers

    @property
    def is_crop(self) -> bool:
        """Return whether the slab is a crop of the source, without interpolation."""
        return self.scale == (1.0, 1.0, 1.0)

    @property
    def slab_affine(self) -> Matrix:
        """Return the affine that takes indices (w, h, s) of the slab to RAS+ mm."""
        step = np.diag([*self.scale[::-1], 1.0])
        step[:3, 3] = self.offset[::-1]
        return as_matrix(self.header.canonical_affine @ step)


def place_slab(volume: Volume, *, settings: StoreSettings, brain: Array | None) -> SlabGrid:
    """Choose where the slab lies in `volume`, a subject's current FLAIR.

    With a brain mask (on the volume's voxels) the slab's centre lies at `brain_height` of the
    brain's bounding box. In plane it lies in the middle of the box around the part of the brain in
    the slab.

    Without a mask the slab takes the central slices. In plane, an axis that must be cropped is
    centred on the box around the tissue of these slices, and an axis that fits is padded evenly.
    """
    slab, spacing = settings.slab, settings.spacing
    sizes = volume.data.shape
    scale = tuple(
        1.0 if same_spacing(own, target) else target / own
        for own, target in zip(volume.spacing, spacing, strict=True)
    )
    middle = _middle(sizes[0])
    height = middle if brain is None else _position_in_box(brain, settings.brain_height, axis=0)
    offset = [_offset(height, scale=scale[0], size=slab[0])]
    foreground = tissue_mask(volume.data) if brain is None else brain != 0
    foreground = foreground[
        _covered_slices(offset[0], scale=scale[0], size=slab[0], source=sizes[0])
    ]
    for axis in (1, 2):
        fits = brain is None and scale[axis] * slab[axis] >= sizes[axis]
        centre = _middle(sizes[axis]) if fits else _position_in_box(foreground, 0.5, axis=axis)
        offset.append(_offset(centre, scale=scale[axis], size=slab[axis]))
    return SlabGrid(volume.header, sizes, slab, _three(scale), _three(offset))


def _three(values: Iterable[float]) -> Numbers:
    s, h, w = values
    return s, h, w


def _middle(size: int) -> float:
    return (size - 1) / 2


def _offset(centre: float, *, scale: float, size: int) -> float:
    """Return the source index of the slab's first voxel, a whole number unless resampled."""
    offset = centre - scale * _middle(size)
    return float(math.floor(offset)) if scale == 1.0 else offset


def _covered_slices(offset: float, *, scale: float, size: int, source: int) -> slice:
    """Return the slices of the source that the slab covers, at least one."""
    last = round(offset + scale * (size - 1))
    return slice(min(max(round(offset), 0), source - 1), max(last, 0) + 1)


def _position_in_box(foreground: Array, fraction: float, *, axis: int) -> float:
    """Return the index at a `fraction` of the foreground's bounding box along `axis`.

    Return the middle of the array if there is no foreground.
    """
    share = np.cumsum(foreground.sum(axis=_others(axis)), dtype=np.float64)
    if not share[-1]:
        return _middle(foreground.shape[axis])
    share /= share[-1]
    first, last = np.searchsorted(share, (_STRAY_SHARE, 1 - _STRAY_SHARE))
    return float(first + fraction * (last - first))


def to_slab(data: Array, grid: SlabGrid, *, order: int, fill: float = 0) -> Array:
    """Resample a canonical volume (s, h, w) onto the slab, with `fill` outside the field of view.

    `order` 1 interpolates linearly (for floats), 0 takes the nearest voxel (for masks and labels).
    """
    for axis, (scale, offset) in enumerate(zip(grid.scale, grid.offset, strict=True)):
        if order and scale > 1:
            # Larger voxels: without a low-pass, source voxels between two samples would be lost.
            data = gaussian_filter1d(data, (scale - 1) / 2, axis=axis, mode="nearest")
        positions = offset + scale * np.arange(grid.slab[axis])
        data = _resample_axis(data, positions, axis=axis, order=order, fill=fill)
    return data


def covered_indices(grid: SlabGrid, axis: int) -> tuple[Array, Array]:
    """Return which indices of the source along an axis the slab takes, and which lie inside it.

    Both are bool [index]. `to_slab` with order 0 takes these indices. A voxel lies inside if its
    centre does.
    """
    size, scale, offset = grid.shape[axis], grid.scale[axis], grid.offset[axis]
    positions = offset + scale * np.arange(grid.slab[axis])
    in_field = positions[(positions >= -0.5) & (positions < size - 0.5)]
    taken = np.zeros(size, bool)
    taken[_nearest(in_field, size)] = True
    from_slab = (np.arange(size) - offset) / scale
    return taken, (from_slab >= -0.5) & (from_slab < grid.slab[axis] - 0.5) | taken


def resample_labels(volume: Volume, grid: SlabGrid) -> Array:
    """Resample labels on a grid of their own onto the slab by the nearest voxel.

    The value is 0 outside the labels' field of view. Labels go straight from their grid to the
    slab, because two steps of rounding could move a label twice.
    """
    if volume.data.shape == grid.shape and np.array_equal(
        volume.affine, grid.header.canonical_affine
    ):
        return to_slab(volume.data, grid, order=0)  # ten times as fast
    from_slab = np.linalg.inv(volume.affine) @ np.array(grid.slab_affine)
    order = (2, 1, 0)  # affines index (w, h, s), arrays (s, h, w)
    turn = from_slab[:3, :3][np.ix_(order, order)]
    shift = from_slab[:3, 3][list(order)]
    nearest = affine_transform(
        volume.data, turn, shift, output_shape=grid.slab, order=0, mode="grid-constant", cval=0
    )
    return np.asarray(nearest)


def to_source_grid(volume: Array, grid: SlabGrid, *, order: int) -> nib.Nifti1Image:
    """Resample a volume of the slab [s, h, w] onto its source file's grid, with affine and codes.

    Exact if the slab is a crop of the source. Otherwise `order` 1 interpolates (for probabilities,
    as float32) and `order` 0 takes the nearest voxel (for masks and labels; booleans become uint8).
    Zero outside the slab. Raises ValueError if `volume` does not have the slab's shape.
    """
    if volume.shape != grid.slab:
        raise ValueError(f"expected a volume of the slab's shape {grid.slab}, got {volume.shape}")
    data = volume.astype(np.float32 if order else np.promote_types(volume.dtype, np.uint8))
    for axis, (scale, offset) in enumerate(zip(grid.scale, grid.offset, strict=True)):
        positions = (np.arange(grid.shape[axis]) - offset) / scale
        data = _resample_axis(data, positions, axis=axis, order=order, fill=0)
    return image_like(grid.header, _to_file_axes(data.transpose(2, 1, 0), grid.header))


def _to_file_axes(canonical: Array, header: NiftiGeometry) -> Array:
    """Reorder voxels (w, h, s) in RAS+ to the file's own axes (i, j, k)."""
    back = ornt_transform(axcodes2ornt("RAS"), header.orientation)
    return np.ascontiguousarray(apply_orientation(canonical, back))


def _resample_axis(data: Array, positions: Array, *, axis: int, order: int, fill: float) -> Array:
    """Return `data` at fractional indices along one axis, `fill` outside the field of view.

    The field of view ends half a voxel beyond the centres of the first and last voxel. Between
    these centres and its ends the value is constant.
    """
    size = data.shape[axis]
    inside = np.clip(positions, 0, size - 1)
    if order == 0 or np.array_equal(positions, np.floor(positions)):
        out = data.take(_nearest(positions, size), axis=axis)
    else:
        low = np.floor(inside).astype(int)
        weight = np.expand_dims((inside - low).astype(data.dtype), _others(axis))
        high = np.minimum(low + 1, size - 1)
        out = data.take(low, axis=axis) * (1 - weight) + data.take(high, axis=axis) * weight
    outside = (positions < -0.5) | (positions >= size - 0.5)
    out[(slice(None),) * axis + (outside,)] = fill
    return np.asarray(out)


def _nearest(positions: Array, size: int) -> Array:
    """Return the index of the voxel that is nearest to each position along an axis."""
    return np.asarray(np.floor(np.clip(positions, 0, size - 1) + 0.5).astype(int))


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)

"""What a figure shows of a forecast: images on one grid, brought to (s, h, w) and to display size.

Axes after `view_of` are RAS+: s upwards, h to anterior, w to the patient's right.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

Floats = npt.NDArray[np.float32]

SHOWN_MM = 0.6  # in-plane size of a displayed pixel
APART_MM = 9.0  # slices nearer than this show the same thing
MARGIN_MM = 6.0
STRAY_VOXELS = 100  # a head has more; smaller ones are cleared of specks no further
HEAD_SHARE = 0.15  # of the 99th percentile: above is head, below is air


@dataclass(frozen=True)
class View:
    """FLAIR, probability by arm and observed lesions, all [s, h, w] with `spacing` (s, h, w) mm.

    `heights` [s] are the slices' positions in mm, superior positive.
    """

    flair: Floats
    probability: Mapping[str, Floats]
    observed: npt.NDArray[np.bool_] | None
    spacing: tuple[float, float, float]
    heights: npt.NDArray[np.float64]


def make_view(
    flair: nib.Nifti1Image,
    probability: Mapping[str, nib.Nifti1Image],
    observed: nib.Nifti1Image | None,
) -> View:
    """The images as they lie in the files, which must share one grid. ValueError where not."""
    for name, image in {**probability, "the observed lesions": observed}.items():
        if image is not None and not _same_grid(image, flair):
            raise ValueError(
                f"expected {name} on the FLAIR's grid {flair.shape}, got {image.shape} or another "
                "affine; write it with to_source_grid"
            )
    canonical = nib.as_closest_canonical(flair)
    w, h, s = (float(size) for size in voxel_sizes(canonical.affine))
    depth = canonical.shape[2]
    middle = np.array([(size - 1) / 2 for size in canonical.shape[:2]])
    column = np.column_stack([np.tile(middle, (depth, 1)), np.arange(depth)])
    return View(
        flair=_array(flair),
        probability={arm: _array(image) for arm, image in probability.items()},
        observed=None if observed is None else _array(observed) > 0.5,
        spacing=(s, h, w),
        heights=apply_affine(canonical.affine, column)[:, 2],
    )


def _same_grid(image: nib.Nifti1Image, other: nib.Nifti1Image) -> bool:
    return image.shape == other.shape and bool(np.allclose(image.affine, other.affine, atol=1e-3))


def _array(image: nib.Nifti1Image) -> Floats:
    canonical = nib.as_closest_canonical(image)
    return np.asarray(canonical.dataobj, np.float32).transpose(2, 1, 0)


def choose_slices(view: View, number: int) -> list[int]:
    """The slices with most probability over all arms, a little apart, from superior down.

    Where nothing is forecast anywhere, the slices around the middle of the volume.
    """
    mass = np.sum([each.sum(axis=(1, 2)) for each in view.probability.values()], axis=0)
    depth = len(mass)
    nearness = -np.abs(np.arange(depth) - (depth - 1) / 2)
    order = np.lexsort((nearness, mass))[::-1]
    apart = max(1, round(APART_MM / view.spacing[0]))
    chosen: list[int] = []
    for index in order:
        if len(chosen) < number and all(abs(index - other) >= apart for other in chosen):
            chosen.append(int(index))
    return sorted(chosen, reverse=True)


def intensity_window(view: View) -> tuple[float, float]:
    """FLAIR intensities shown as black and as white."""
    tissue = view.flair[head_mask(view.flair)]
    low, high = np.percentile(tissue, [1.0, 99.7]) if tissue.size else (0.0, 1.0)
    return float(low - 0.1 * (high - low)), float(high)


def head_mask(flair: Floats) -> npt.NDArray[np.bool_]:
    """Where there is no air."""
    low, high = (float(value) for value in np.percentile(flair, [1, 99]))
    return np.asarray(flair > low + HEAD_SHARE * (high - low))


def crop(view: View, slices: list[int]) -> tuple[slice, slice]:
    """The (h, w) window that holds the head in all of `slices`, with a margin."""
    shown = np.asarray(head_mask(view.flair[slices]).any(axis=0))
    if shown.sum() > STRAY_VOXELS:
        shown = ndimage.binary_opening(shown)
    return (
        _bounds(np.asarray(shown.any(axis=1)), round(MARGIN_MM / view.spacing[1])),
        _bounds(np.asarray(shown.any(axis=0)), round(MARGIN_MM / view.spacing[2])),
    )


def _bounds(occupied: npt.NDArray[np.bool_], margin: int) -> slice:
    where = np.flatnonzero(occupied)
    if not where.size:
        return slice(0, len(occupied))
    return slice(max(0, where[0] - margin), min(len(occupied), where[-1] + 1 + margin))


def to_radiological(plane: Floats, spacing: tuple[float, float, float], *, order: int) -> Floats:
    """A slice [h, w] on isotropic display pixels, in radiological convention.

    Rows run from anterior down, columns from the patient's right (shown on the left) to the left.
    """
    factors = (spacing[1] / SHOWN_MM, spacing[2] / SHOWN_MM)
    smooth = ndimage.zoom(plane, factors, order=order, mode="nearest", grid_mode=True)
    return np.asarray(smooth[::-1, ::-1], np.float32)

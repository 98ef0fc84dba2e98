"""Prepare a forecast's images for a figure: one grid, axes (s, h, w), slices, crop and contrast.

Axes after `make_view` are RAS+: s runs from inferior to superior, h to anterior, w to the patient's
right.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from storage.preprocess.tissue import tissue_mask
from storage.radiological import to_radiological

Floats = npt.NDArray[np.float32]

SHOWN_MM = 0.6  # in-plane size of a displayed pixel
APART_MM = 9.0  # distance of the displayed slices; nearer ones show the same lesions
MARGIN_MM = 6.0
STRAY_VOXELS = 100  # only head masks with more voxels are cleaned of isolated specks


@dataclass(frozen=True)
class View:
    """Images of a forecast on one grid, all [s, h, w]: FLAIR, probability by arm, observed lesions.

    `spacing` (s, h, w) is in mm. `heights` [s] are the slices' positions in mm, superior positive.
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
    """Bring the images of the files to RAS+ axes. Raise ValueError if their grids differ."""
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
    """Return the slices with the most probability over all arms, from superior to inferior.

    They are at least `APART_MM` apart. Where the probability is zero everywhere they are the slices
    around the middle of the volume.
    """
    maps = view.probability.values()
    mass = np.sum([probability.sum(axis=(1, 2)) for probability in maps], axis=0)
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
    """Return the FLAIR intensities that are displayed as black and as white."""
    tissue = view.flair[tissue_mask(view.flair)]
    low, high = np.percentile(tissue, [1.0, 99.7]) if tissue.size else (0.0, 1.0)
    return float(low - 0.1 * (high - low)), float(high)


def crop(view: View, slices: list[int]) -> tuple[slice, slice]:
    """Return the (h, w) window that contains the head in all of `slices`, with a margin."""
    shown = np.asarray(tissue_mask(view.flair[slices]).any(axis=0))
    if shown.sum() > STRAY_VOXELS:
        shown = ndimage.binary_opening(shown)
    return (
        _bounds(np.asarray(shown.any(axis=1)), round(MARGIN_MM / view.spacing[1])),
        _bounds(np.asarray(shown.any(axis=0)), round(MARGIN_MM / view.spacing[2])),
    )


def _bounds(occupied: npt.NDArray[np.bool_], margin: int) -> slice:
    indices = np.flatnonzero(occupied)
    if not indices.size:
        return slice(0, len(occupied))
    return slice(max(0, indices[0] - margin), min(len(occupied), indices[-1] + 1 + margin))


def to_display(plane: Floats, spacing: tuple[float, float, float], *, order: int) -> Floats:
    """Resample a slice [h, w] to isotropic display pixels, in radiological convention."""
    factors = (spacing[1] / SHOWN_MM, spacing[2] / SHOWN_MM)
    smooth = ndimage.zoom(plane, factors, order=order, mode="nearest", grid_mode=True)
    return to_radiological(np.asarray(smooth, np.float32))

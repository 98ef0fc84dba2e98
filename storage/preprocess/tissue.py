"""Find the tissue of an image: the voxels of the head, or of the brain if the skull was removed.

Programs and scanners leave different things in the air: zeros, another constant, noise, or some of
each. Tissue is therefore not "what is not zero". If the air is constant, tissue is all the rest,
however dark. If the air is noisy, tissue is what exceeds the noise, together with the dark voxels
that it encloses in an axial slice, and without specks.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu

from storage.layout import CONNECTIVITY_26, Array

Mask = npt.NDArray[np.bool_]

# A value is the constant of the air if it has this share of the voxels at the sides of slices.
_CONSTANT_SHARE = 0.2
# Voxels at the corners of a slice, as a share of its height and width.
_CORNER_SHARE = 1 / 16
# Air ends at this share of the way from its own level to that of bright tissue, or beyond this many
# standard deviations of its noise if that is more (one air voxel in 1600 of Rician noise).
_AIR_SHARE = 0.12
_NOISE_DEVIATIONS = 4.0
# Corners with more noise, relative to the distance from their level to tissue, are no air.
_MAX_NOISE = 0.15
# Steps from bright voxels within which dark ones may belong to the surface of the tissue.
_RIM = 2
# The air is noisy if its voxels that differ from the constant exceed this share of the tissue.
_NOISY_SHARE = 0.002
# Quantile of the air's noise above which a voxel is tissue.
_NOISE_QUANTILE = 0.999
# Pieces of tissue below this share of the largest one are specks.
_SPECK_SHARE = 0.02
# Levels and quantiles are computed on about this many voxels.
_SAMPLE = 5_000

# Neighbours of a voxel in its axial slice. Dark tissue is enclosed there, and not in 3-D, because
# the lowest slice of a head is open.
_IN_PLANE = np.zeros((3, 3, 3), bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


def tissue_mask(image: Array) -> Mask:
    """Return where an image (s, h, w) shows tissue and not air.

    If no air can be told from tissue, every voxel that differs from the constant is tissue.
    """
    constant = _constant_of_air(image)
    different = np.asarray(image != constant)
    threshold = _threshold(image)
    if threshold is None:
        return different
    bright = np.asarray(image > threshold)
    few = _NOISY_SHARE * np.count_nonzero(bright)
    if np.count_nonzero(different & ~bright) <= few:
        return different
    noise = image[different & _outside(bright) & ~_grown(bright, _RIM)]
    if noise.size <= few:
        return different
    noise = noise[:: 1 + noise.size // (40 * _SAMPLE)]
    end = max(constant, float(np.quantile(noise, _NOISE_QUANTILE)))
    return _without_specks(~_outside(np.asarray(image > min(threshold, end))))


def _constant_of_air(image: Array) -> float:
    """Return the most frequent value at the sides of the axial slices, 0 if none is frequent."""
    sides = np.concatenate([side.ravel() for side in _sides(image)])
    values, counts = np.unique(sides, return_counts=True)
    most = int(counts.argmax())
    return float(values[most]) if counts[most] >= _CONSTANT_SHARE * sides.size else 0.0


def _sides(volume: Array) -> tuple[Array, ...]:
    """Return the first and last rows and columns of the axial slices."""
    return volume[:, 0], volume[:, -1], volume[:, :, 0], volume[:, :, -1]


def _threshold(image: Array) -> float | None:
    """Return the intensity that separates bright tissue from air, None if there is no air.

    The corners of the axial slices are air in any image of a whole head. Bright tissue is the upper
    of the two classes of Otsu's method.
    """
    corners = _corners(image).astype(np.float64)
    air = float(np.median(corners))
    # 1.4826 turns the median absolute deviation into the standard deviation of a normal variable.
    noise = 1.4826 * float(np.median(np.abs(corners - air)))
    step = max(1, round((image.size / _SAMPLE) ** 0.5))
    sample = image[:, ::step, ::step].astype(np.float32).ravel()
    sample = np.clip(sample, *np.percentile(sample, (0.5, 99.5)))
    if sample.min() == sample.max():
        return None
    level = float(np.median(sample[sample > threshold_otsu(sample)]))
    if noise > _MAX_NOISE * (level - air):
        return None
    return air + max(_AIR_SHARE * (level - air), _NOISE_DEVIATIONS * noise)


def _corners(image: Array) -> Array:
    """Return the voxels in the corners of all axial slices."""
    h, w = (max(1, int(_CORNER_SHARE * size)) for size in image.shape[1:])
    rows, columns = (slice(h), slice(-h, None)), (slice(w), slice(-w, None))
    return np.concatenate([image[:, row, column].ravel() for row in rows for column in columns])


def _outside(bright: Mask) -> Mask:
    """Return the voxels that are not bright and reach a side of their slice through such voxels."""
    labels, number = ndimage.label(~bright, _IN_PLANE)
    reaches = np.zeros(number + 1, bool)
    for side in _sides(labels):
        reaches[side] = True
    reaches[0] = False  # the label of bright voxels
    return np.asarray(reaches[labels])


def _grown(mask: Mask, steps: int) -> Mask:
    """Return a mask dilated by `steps` voxels within its slices.

    This takes a fiftieth of the time of scipy's `binary_dilation`.
    """
    for _ in range(steps):
        grown = mask.copy()
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        grown[:, :, 1:] |= mask[:, :, :-1]
        grown[:, :, :-1] |= mask[:, :, 1:]
        mask = grown
    return mask


def _without_specks(mask: Mask) -> Mask:
    """Return a mask without its pieces that are small compared with the largest one."""
    labels, _ = ndimage.label(mask, CONNECTIVITY_26)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0  # the label of what is outside
    return np.asarray((sizes >= _SPECK_SHARE * sizes.max())[labels] & mask)

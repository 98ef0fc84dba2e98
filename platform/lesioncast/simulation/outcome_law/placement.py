"""Compute where a simulated subject's next new lesions arise: the density behind `lesions`.

A forecast cannot know a lesion's place better than the law that placed it, so the density is the
bar for every map of a simulated trial. It follows from the law in two steps: the distribution of a
lesion's centre in closed form, then the mean shape of a lesion around it.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import signal, special

from lesioncast.arrays import Floats
from lesioncast.simulation.disease import Patient
from lesioncast.simulation.lesions.placement import (
    NEAR_SHARE,
    NEW_LESION_RADIUS,
    SlabTissue,
    free_tissue,
)
from lesioncast.simulation.lesions.shapes import Lesion, ellipsoid_occupancy
from lesioncast.simulation.lesions.sites import NEAR_MM, FreeTissue, Voxel

# Lesions drawn for the mean shape; their error is far below that of any score over cases.
_SHAPES = 1500
_FAR_MM = 100.0  # distance to the ventricles at which the long axis points anywhere


def placement_density(
    slab: SlabTissue, earlier: Sequence[Lesion], patient: Patient, *, number: int
) -> Floats:
    """Return the mean share of new-lesion voxels at each voxel, [s, h, w] of the target grid's box.

    The sum is 1. It is the law's density given anatomy, `earlier` lesions and the number of new
    ones, up to three simplifications: long axes point in any direction near the ventricles too, new
    lesions of one period may touch, and a lesion that other tissue cuts keeps its parts.
    """
    free = free_tissue(slab, earlier)
    deep = _normalised(_weights(slab, np.diff(slab.sites.deep, prepend=0.0)) * free.white)
    juxtacortical = _weights(slab, np.diff(slab.sites.juxtacortical, prepend=0.0)) * free.white
    cortical = patient.cortical if juxtacortical.any() else 0.0
    first = _centres(deep, free, [lesion.centre for lesion in earlier])
    others = _mix(cortical, _normalised(juxtacortical), first)
    # A later lesion may have an earlier one of its own period as its neighbour.
    anchors = len(earlier) + np.arange(number)
    new_share = float(np.mean(np.arange(number) / np.maximum(anchors, 1)))
    beside_new = _beside(others, free)
    later = (1 - new_share) * first + new_share * _mix(NEAR_SHARE, beside_new, deep)
    shape = mean_shape(slab.spacing)
    return _normalised(
        cortical * _convolve(_normalised(juxtacortical), shape) * (free.white | free.cortex)
        + (1 - cortical) * _convolve(later, shape) * free.white
    )


def _weights(slab: SlabTissue, weights: Floats) -> Floats:
    """Return weights of the white matter's voxels as a volume [s, h, w]."""
    volume = np.zeros(slab.sites.white.shape)
    volume.flat[slab.sites.voxels] = weights
    return volume


def _normalised(weights: Floats) -> Floats:
    """Return non-negative weights divided by their sum; zeros stay zeros."""
    total = weights.sum()
    return np.asarray(weights / total) if total > 0 else weights


def _mix(share: float, one: Floats, other: Floats) -> Floats:
    return share * one + (1 - share) * other


def _centres(deep: Floats, free: FreeTissue, anchors: Sequence[Voxel]) -> Floats:
    """Return the density of the centre of a lesion that is not cortical."""
    if not anchors:
        return deep
    at = np.zeros(deep.shape)
    np.add.at(at, tuple(np.transpose(anchors)), 1.0)
    return _mix(NEAR_SHARE, _beside(at, free), deep)


def _beside(anchors: Floats, free: FreeTissue) -> Floats:
    """Return the density of a free voxel beside `anchors`, weighted as given.

    The law draws normal steps, rounds them to voxels and rejects what is not free.
    """
    kernel: npt.NDArray[np.float64] = np.ones(1)
    for size in free.spacing:
        half = int(np.ceil(5 * NEAR_MM / size))
        edges = (np.arange(-half, half + 2) - 0.5) * size / NEAR_MM
        kernel = np.multiply.outer(kernel, np.diff(special.ndtr(edges)))
    return _normalised(_convolve(anchors, kernel[0]) * free.white)


def _convolve(volume: Floats, kernel: Floats) -> Floats:
    """Return the convolution on the volume's own grid, without the rounding below zero of FFT."""
    return np.asarray(np.maximum(signal.fftconvolve(volume, kernel, mode="same"), 0.0))


@lru_cache(maxsize=2)
def mean_shape(spacing: tuple[float, ...]) -> Floats:
    """Return the probability that a new lesion covers a voxel at an offset from its centre.

    [s, h, w] with the centre in the middle. The long axis points in any direction. It is the mean
    of shapes that the simulation itself draws, with a seed of their own.
    """
    furthest = 2 * NEW_LESION_RADIUS.high
    size = tuple(2 * int(np.ceil(furthest / step)) + 1 for step in spacing)
    middle = (size[0] // 2, size[1] // 2, size[2] // 2)
    far = np.full(size, _FAR_MM, np.float32)
    rng = np.random.default_rng(0)
    covered = np.zeros(size)
    for _ in range(_SHAPES):
        radius = NEW_LESION_RADIUS.draw(rng)
        window, occupancy = ellipsoid_occupancy(rng, far, middle, spacing, radius)
        covered[window] += occupancy > 0.5
    covered[middle] = _SHAPES  # a lesion has at least its central voxel
    return covered / _SHAPES

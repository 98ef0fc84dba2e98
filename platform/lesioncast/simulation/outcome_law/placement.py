"""Compute where a simulated subject's next new lesions arise: the density behind `lesions`.

A forecast cannot know a lesion's place better than the law that placed it, so the density is the
bar for every map of a simulated trial. It follows from the law in two steps: the distribution of a
lesion's centre in closed form, then the mean shape of a lesion around it.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import signal, special

from lesioncast.arrays import Floats
from lesioncast.simulation.lesions.enlarging import (
    LOBE_RADIUS,
    free_voxels_beside,
    host_weights,
)
from lesioncast.simulation.lesions.placement import NEW_LESION_RADIUS, PeriodStart
from lesioncast.simulation.lesions.radii import RadiusDistribution
from lesioncast.simulation.lesions.shapes import ellipsoid_occupancy
from lesioncast.simulation.lesions.sites import FreeTissue

# Lesions drawn for the mean shape; their error is far below that of any score over cases.
_SHAPES = 1500
_FAR_MM = 100.0  # distance to the ventricles at which the long axis points anywhere


def placement_density(start: PeriodStart, *, number: int) -> Floats:
    """Return the mean share of new-lesion voxels at each voxel, [s, h, w] of the target grid's box.

    The sum is 1. It is the law's density given all that precedes the period, and the number of its
    lesions, up to three simplifications: long axes point in any direction near the ventricles too,
    lesions of the period leave all tissue free for one another, and a lesion that other tissue cuts
    keeps its parts.
    """
    free, spacing = start.free_tissue(), start.brain.spacing
    juxtacortical = _weights(start, start.sites.juxtacortical) * free.white
    cortical = start.brain.patient.cortical if juxtacortical.any() else 0.0
    juxtacortical = _normalised(juxtacortical)
    shape = mean_shape(spacing, NEW_LESION_RADIUS)
    lobes = _lobe_centres(start, free)
    deep = _convolve(_deep_centres(start, free, juxtacortical, lobes, number=number), shape)
    if lobes.any():
        beside = _convolve(lobes, mean_shape(spacing, LOBE_RADIUS))
        deep = _mix(start.brain.settings.enlarging_share, beside, deep)
    return _normalised(
        cortical * _convolve(juxtacortical, shape) * (free.white | free.cortex)
        + (1 - cortical) * deep * free.white
    )


def _deep_centres(
    start: PeriodStart, free: FreeTissue, juxtacortical: Floats, lobes: Floats, *, number: int
) -> Floats:
    """Return the density of the centre of a separate lesion that is not cortical.

    It is the mean over `number` lesions. A later one may have an earlier one of its own period as
    its neighbour.
    """
    nearby, cortical = start.brain.nearby, start.brain.patient.cortical
    deep = _normalised(_weights(start, start.sites.deep) * free.white)
    first = deep
    if start.earlier:
        at = np.zeros(deep.shape)
        np.add.at(at, tuple(np.transpose([lesion.centre for lesion in start.earlier])), 1.0)
        first = _mix(nearby.share, _beside(at, free, nearby.mm), deep)
    white = _mix(start.brain.settings.enlarging_share, lobes, first) if lobes.any() else first
    neighbours = _mix(cortical if juxtacortical.any() else 0.0, juxtacortical, white)
    anchors = len(start.earlier) + np.arange(number)
    new_share = float(np.mean(np.arange(number) / np.maximum(anchors, 1)))
    beside_new = _beside(neighbours, free, nearby.mm)
    return (1 - new_share) * first + new_share * _mix(nearby.share, beside_new, deep)


def _lobe_centres(start: PeriodStart, free: FreeTissue) -> Floats:
    """Return the density of the voxel where a lobe starts; zero if no lesion can enlarge."""
    starts = np.zeros(free.white.shape)
    if not start.brain.settings.enlarging_share:
        return starts
    for lesion, weight in zip(
        start.earlier, host_weights(start.earlier, start.active), strict=True
    ):
        beside = free_voxels_beside(lesion, free)
        if len(beside):
            starts[tuple(beside.T)] += weight / len(beside)
    return _normalised(starts)


def _weights(start: PeriodStart, cumulative: Floats) -> Floats:
    """Return cumulative weights of the sites' voxels, [n], as weights of a volume [s, h, w]."""
    volume = np.zeros(start.sites.white.shape)
    volume.flat[start.sites.voxels] = np.diff(cumulative, prepend=0.0)
    return volume


def _normalised(weights: Floats) -> Floats:
    """Return non-negative weights divided by their sum; zeros stay zeros."""
    total = weights.sum()
    return np.asarray(weights / total) if total > 0 else weights


def _mix(share: float, one: Floats, other: Floats) -> Floats:
    return share * one + (1 - share) * other


def _beside(anchors: Floats, free: FreeTissue, mm: float) -> Floats:
    """Return the density of a free voxel beside `anchors`, weighted as given, with sd `mm`.

    The law draws normal steps, rounds them to voxels and rejects what is not free.
    """
    kernel: npt.NDArray[np.float64] = np.ones(1)
    for size in free.spacing:
        half = int(np.ceil(5 * mm / size))
        edges = (np.arange(-half, half + 2) - 0.5) * size / mm
        kernel = np.multiply.outer(kernel, np.diff(special.ndtr(edges)))
    return _normalised(_convolve(anchors, kernel[0]) * free.white)


def _convolve(volume: Floats, kernel: Floats) -> Floats:
    """Return the convolution on the volume's own grid, without the rounding below zero of FFT."""
    return np.asarray(np.maximum(signal.fftconvolve(volume, kernel, mode="same"), 0.0))


@lru_cache(maxsize=4)
def mean_shape(spacing: tuple[float, ...], radius: RadiusDistribution) -> Floats:
    """Return the probability that a new lesion covers a voxel at an offset from its centre.

    [s, h, w] with the centre in the middle. The long axis points in any direction. It is the mean
    of shapes that the simulation itself draws, with a seed of their own.
    """
    furthest = 2 * radius.high
    size = tuple(2 * int(np.ceil(furthest / step)) + 1 for step in spacing)
    middle = (size[0] // 2, size[1] // 2, size[2] // 2)
    far = np.full(size, _FAR_MM, np.float32)
    rng = np.random.default_rng(0)
    covered = np.zeros(size)
    for _ in range(_SHAPES):
        size_mm = radius.draw(rng)
        window, occupancy = ellipsoid_occupancy(rng, far, middle, spacing, size_mm)
        covered[window] += occupancy > 0.5
    covered[middle] = _SHAPES  # a lesion has at least its central voxel
    return covered / _SHAPES

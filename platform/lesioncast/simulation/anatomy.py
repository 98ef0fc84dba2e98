"""One subject's anatomy on the target grid: the template, moved, bent and aged.

Everything happens on the target grid: its voxels are pulled through an affine and a smooth warp
into the template, so cost follows the size of the image and nothing is inverted. The warp breaks
the template's left-right symmetry and its shared folding. It is drawn for the whole head, so that a
subject has the same brain on any grid.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.simulation.random_fields import SplineField
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.template import CENTRE, ORIGIN, Template, template

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Extent of the template's brain about CENTRE (z, y, x), in mm, with room for the warp.
_BRAIN_EXTENT_MM = ((-96.0, 78.0), (-98.0, 98.0), (-80.0, 80.0))
_WARPS = ((28.0, 2.1), (12.0, 1.5))  # (lattice step, standard deviation) in mm
_NODE_STEP = 6.0


@dataclass(frozen=True)
class TargetGrid:
    """The part of the target grid that a brain can reach, and lattices over it."""

    box: tuple[slice, slice, slice]
    axes: tuple[npt.NDArray[np.float64], ...]  # mm about the volume's centre
    nodes: SplineField  # carries the warp
    warps: tuple[SplineField, ...]  # random lattices, evaluated at the nodes
    texture: SplineField
    bias: SplineField


@dataclass(frozen=True)
class Anatomy:
    """One subject inside `frame.box`; arrays are [s, h, w] of the box, zero outside the brain."""

    inside: Array  # brain fraction
    grey: Array
    csf: Array
    detail: Array
    labels: npt.NDArray[np.int16]  # FreeSurfer ids
    ventricle_distance: Array  # mm
    cortex_distance: Array  # mm


@lru_cache(maxsize=2)
def target_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> TargetGrid:
    """The frame of a target grid; computed once a process."""
    box: list[slice] = []
    axes: list[npt.NDArray[np.float64]] = []
    for size, step, (low, high) in zip(shape, spacing, _BRAIN_EXTENT_MM, strict=True):
        positions = (np.arange(size, dtype=np.float64) - (size - 1) / 2) * step
        first, stop = np.searchsorted(positions, [low, high])
        box.append(slice(int(first), int(stop)))
        axes.append(positions[first:stop])
    nodes = SplineField(axes, _BRAIN_EXTENT_MM, _NODE_STEP)
    return TargetGrid(
        box=(box[0], box[1], box[2]),
        axes=tuple(axes),
        nodes=nodes,
        warps=tuple(SplineField(nodes.nodes, _BRAIN_EXTENT_MM, step) for step, _ in _WARPS),
        texture=SplineField(axes, _BRAIN_EXTENT_MM, 5.0),
        bias=SplineField(axes, _BRAIN_EXTENT_MM, 60.0),
    )


def _random_affine(
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A matrix [3, 3] and offset (mm) from the target to the template about CENTRE, (z, y, x)."""
    pitch, roll, yaw = np.radians([4.0, 2.0, 3.0] * np.clip(rng.standard_normal(3), -2, 2))
    rotate = np.eye(3)
    for (a, b), angle in (((0, 1), pitch), ((0, 2), roll), ((1, 2), yaw)):
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotate = rotate @ turn
    size = np.clip(0.94 + 0.02 * rng.standard_normal(), 0.89, 0.98)
    sizes = size * (1 + 0.012 * np.clip(rng.standard_normal(3), -2, 2))
    return np.diag(1 / sizes) @ rotate, 1.5 * np.clip(rng.standard_normal(3), -2, 2)


def _coordinates(
    field: TargetGrid, source: Template, rng: np.random.Generator, *, atrophy: float
) -> Array:
    """Template voxel coordinates [3, s, h, w] of the box."""
    matrix, offset = _random_affine(rng)
    step = np.array(source.step, np.float32)
    matrix, offset = matrix / step[:, None], (CENTRE - ORIGIN + offset) / step
    per_voxel = (1 / step[:, None, None, None]).astype(np.float32)
    shift = np.zeros((3, *map(len, field.nodes.nodes)), np.float32)
    for lattice, (_, deviation) in zip(field.warps, _WARPS, strict=True):
        shift += np.float32(deviation) * lattice.sample(rng, 3)
    at_nodes = _affine(matrix, offset, field.nodes.nodes) + shift * per_voxel
    nearest = _nearest(at_nodes, source.labels.shape)
    growth = np.stack([direction[nearest] for direction in source.outward])
    bend = ((shift - np.float32(atrophy) * growth) * per_voxel).astype(np.float32)
    return _affine(matrix, offset, field.axes) + field.nodes.evaluate(bend)


def _affine(
    matrix: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    axes: tuple[npt.NDArray[np.float64], ...] | list[npt.NDArray[np.float64]],
) -> Array:
    """matrix @ position + offset for open axes: [3, s, h, w] by broadcasting."""
    s, h, w = np.ix_(*axes)
    rows = [
        (r[0] * s + o).astype(np.float32) + (r[1] * h + r[2] * w).astype(np.float32)
        for r, o in zip(matrix, offset, strict=True)
    ]
    return np.stack(rows)


def _nearest(coordinates: Array, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], ...]:
    """Voxel indices, clamped to the template."""
    rounded = np.rint(coordinates).astype(np.intp)
    return tuple(axis.clip(0, size - 1) for axis, size in zip(rounded, shape, strict=True))


def _trilinear(channels: Array, points: Array) -> Array:
    """Channels [c, s, h, w] (stored channel-last) at voxel positions [3, n]: [c, n].

    Several times faster than one spline call a channel, since the corners are found once.
    """
    packed = np.moveaxis(channels, 0, -1).reshape(-1, len(channels))  # a view: [voxel, c]
    _, height, width = channels.shape[1:]
    limit = np.array(channels.shape[1:], np.float32)[:, None] - 1.001
    points = np.clip(points, 0, limit)
    corner = points.astype(np.int32)
    upper = (points - corner)[..., None]  # weight of the upper neighbour, [3, n, 1]
    lower = 1 - upper
    first = (corner[0] * height + corner[1]) * width + corner[2]
    total = np.zeros((points.shape[1], len(channels)), np.float32)
    for s, h, w in np.ndindex(2, 2, 2):
        weight = (upper if s else lower)[0] * (upper if h else lower)[1]
        weight = weight * (upper if w else lower)[2]
        total += weight * packed.take(first + ((s * height + h) * width + w), axis=0)
    return total.T


def build_anatomy(
    settings: SimulationSettings, rng: np.random.Generator, *, atrophy: float
) -> Anatomy:
    """Draw and sample one subject's anatomy; `atrophy` is how far (mm) ventricles have grown."""
    field, source = target_grid(settings.shape, settings.spacing), template(settings.spacing)
    coordinates = _coordinates(field, source, rng, atrophy=atrophy)
    nearest = _nearest(coordinates, source.labels.shape)
    brain = source.inside[nearest] > 0.05
    at_brain = tuple(axis[brain] for axis in nearest)
    images = np.zeros((4, *brain.shape), np.float32)
    images[:, brain] = _trilinear(source.images, coordinates[:, brain])

    def pick(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        picked = np.zeros(brain.shape, volume.dtype)
        picked[brain] = volume[at_brain]
        return picked

    inside, grey, csf, detail = images
    return Anatomy(
        inside=inside,
        grey=grey,
        csf=csf,
        detail=detail,
        labels=pick(source.labels),
        ventricle_distance=pick(source.ventricle_distance),
        cortex_distance=pick(source.cortex_distance),
    )

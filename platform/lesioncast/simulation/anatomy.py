"""Build one subject's anatomy on the target grid: the template after an affine, a warp and atrophy.

Each voxel of the target grid is mapped into the template by an affine and a smooth warp. So the
cost depends on the size of the image, and no transform has to be inverted. The warp breaks the
left-right symmetry of the template and varies its folding. It is drawn for the whole head, so a
subject has the same brain on any grid.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Float32s, Floats, LabelMap
from lesioncast.simulation.random_fields import SplineField
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.template import CENTRE, ORIGIN, Template, template

# Extent of the template's brain about CENTRE (z, y, x), in mm, with a margin for the warp.
_BRAIN_EXTENT_MM = ((-96.0, 78.0), (-98.0, 98.0), (-80.0, 80.0))
# Random fields whose sum is the warp: (node step, standard deviation) in mm.
_WARPS = ((28.0, 2.1), (12.0, 1.5))
# Step in mm of the nodes on which the summed warp is interpolated.
_NODE_STEP = 6.0


@dataclass(frozen=True)
class TargetGrid:
    """Part of the target grid that a brain can fill, and the random fields on it."""

    #: The part of a volume (s, h, w); brains are built inside it.
    box: tuple[slice, slice, slice]
    #: Voxel positions of the box in mm about the volume's centre.
    axes: tuple[Floats, ...]
    #: Spline that carries the summed warp from its nodes to the voxels.
    nodes: SplineField
    #: Random fields of the warp, evaluated at the nodes.
    warps: tuple[SplineField, ...]
    #: Random field of the tissue texture.
    texture: SplineField
    #: Random field of the intensity bias.
    bias: SplineField
    #: Random field of regional propensity to lesions.
    region: SplineField
    #: Random field of places that are prone to lesions in one period.
    prone: SplineField


@dataclass(frozen=True)
class Anatomy:
    """Anatomy of one subject in `TargetGrid.box`, [s, h, w], zero outside the brain."""

    #: Brain fraction.
    inside: Float32s
    #: Grey matter fraction.
    grey: Float32s
    #: Fraction of cerebrospinal fluid.
    csf: Float32s
    #: FLAIR variation within white matter and deep grey matter.
    detail: Float32s
    #: FreeSurfer ids.
    labels: LabelMap
    #: Distance to the ventricles in mm.
    ventricle_distance: Float32s
    #: Distance to the cortex in mm.
    cortex_distance: Float32s


@lru_cache(maxsize=2)
def target_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> TargetGrid:
    """Return the target grid of a volume; it is computed once a process."""
    box: list[slice] = []
    axes: list[Floats] = []
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
        region=SplineField(axes, _BRAIN_EXTENT_MM, 24.0),
        prone=SplineField(axes, _BRAIN_EXTENT_MM, 8.0),
    )


def _random_affine(
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Draw matrix [3, 3] and offset (mm) from target to template about CENTRE, (z, y, x)."""
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
    grid: TargetGrid, source: Template, rng: np.random.Generator, *, atrophy: float
) -> Float32s:
    """Return the template voxel coordinates of the voxels of the box, [3, s, h, w]."""
    matrix, offset = _random_affine(rng)
    step = np.array(source.step, np.float32)
    matrix, offset = matrix / step[:, None], (CENTRE - ORIGIN + offset) / step
    per_voxel = (1 / step[:, None, None, None]).astype(np.float32)
    shift = np.zeros((3, *map(len, grid.nodes.nodes)), np.float32)
    for warp, (_, deviation) in zip(grid.warps, _WARPS, strict=True):
        shift += np.float32(deviation) * warp.sample(rng, 3)
    at_nodes = _affine(matrix, offset, grid.nodes.nodes) + shift * per_voxel
    nearest = _nearest(at_nodes, source.labels.shape)
    growth = np.stack([direction[nearest] for direction in source.outward])
    # Sampling closer to the ventricles moves their walls outwards: that is atrophy.
    bend = ((shift - np.float32(atrophy) * growth) * per_voxel).astype(np.float32)
    return _affine(matrix, offset, grid.axes) + grid.nodes.evaluate(bend)


def _affine(
    matrix: Floats,
    offset: Floats,
    axes: tuple[Floats, ...] | list[Floats],
) -> Float32s:
    """Return matrix @ position + offset for all positions on the axes, [3, s, h, w]."""
    s, h, w = np.ix_(*axes)
    rows = [
        (r[0] * s + o).astype(np.float32) + (r[1] * h + r[2] * w).astype(np.float32)
        for r, o in zip(matrix, offset, strict=True)
    ]
    return np.stack(rows)


def _nearest(coordinates: Float32s, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], ...]:
    """Round coordinates to voxel indices, clamped to the template."""
    rounded = np.rint(coordinates).astype(np.intp)
    return tuple(axis.clip(0, size - 1) for axis, size in zip(rounded, shape, strict=True))


def _trilinear(channels: Float32s, points: Float32s) -> Float32s:
    """Interpolate channels [c, s, h, w], stored channel-last, at voxel positions [3, n]: [c, n].

    One call for all channels computes the corners once. That is several times faster than one
    `map_coordinates` call a channel.
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
    """Draw one subject's anatomy; ventricle walls move outwards by `atrophy` mm."""
    grid, source = target_grid(settings.shape, settings.spacing), template(settings.spacing)
    coordinates = _coordinates(grid, source, rng, atrophy=atrophy)
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

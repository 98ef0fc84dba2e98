"""Geometry of 4x4 affines that take voxel indices to RAS+ millimetres."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation, ornt2axcodes

Matrix = tuple[tuple[float, ...], ...]


def as_matrix(array: npt.NDArray[Any]) -> Matrix:
    """Return a 4x4 array as nested tuples of floats, for frozen records and JSON."""
    return tuple(tuple(float(value) for value in row) for row in array)


def orientation(affine: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return the flips and permutation that take an affine's axes to RAS+ order, as in nibabel."""
    return _orientation(np.asarray(affine, np.float64).tobytes())


@lru_cache(maxsize=256)  # most files of a trial share few affines
def _orientation(affine: bytes) -> npt.NDArray[Any]:
    return np.asarray(io_orientation(np.frombuffer(affine).reshape(4, 4)))


def axis_codes(affine: npt.ArrayLike) -> str:
    """Return the axis codes of an affine, for example "RAS"."""
    return "".join(ornt2axcodes(orientation(affine)))


def voxel_sizes(affine: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the millimetres between voxels along each axis of an affine."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def max_corner_distance(
    one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], *, shape: tuple[int, int, int]
) -> float:
    """Return the largest distance in mm between the corners of one volume under two affines.

    `shape` counts the voxels along the index axes of the affines, in their order.
    """
    i, j, k = shape
    corners = np.array([(x, y, z, 1) for x in (0, i - 1) for y in (0, j - 1) for z in (0, k - 1)])
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())

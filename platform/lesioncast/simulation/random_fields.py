"""Smooth random fields: cubic B-splines on a coarse lattice, evaluated as three matrix products."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Axis = npt.NDArray[np.float64]

# A cubic B-spline line of independent unit normals has variance about 0.479.
_UNIT_VARIANCE = 0.479**-0.5


def _basis(positions: Axis, nodes: Axis) -> Array:
    """Cubic B-spline weights [position, node] of evenly spaced nodes."""
    distance = np.abs(positions[:, None] - nodes) / (nodes[1] - nodes[0])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    basis: Array = np.where(distance < 1, near, far).astype(np.float32)
    return basis


class SplineField:
    """Nodes `step` mm apart over `reach` (mm, low and high of each axis), seen at `axes`.

    Nodes follow from `reach` and `step` alone, so that a field drawn with one seed is the same
    field whatever the positions at which it is seen.
    """

    def __init__(
        self, axes: Sequence[Axis], reach: Sequence[tuple[float, float]], step: float
    ) -> None:
        self.nodes: list[Axis] = []
        for low, high in reach:
            count = int(np.ceil((high - low) / step)) + 3
            middle, half = (low + high) / 2, (count - 1) * step / 2
            self.nodes.append(np.linspace(middle - half, middle + half, count))
        self._bases = [_basis(*pair) for pair in zip(axes, self.nodes, strict=True)]

    def evaluate(self, coefficients: Array) -> Array:
        """The field [..., s, h, w] whose spline coefficients are [..., ns, nh, nw]."""
        s, h, w = self._bases
        rows = np.matmul(h, np.matmul(coefficients, w.T))  # [..., ns, h, w]
        flat = rows.reshape(*rows.shape[:-2], -1)  # [..., ns, h * w]
        field: Array = np.matmul(s, flat).reshape(*rows.shape[:-3], len(s), *rows.shape[-2:])
        return field

    def sample(self, rng: np.random.Generator, fields: int | None = None) -> Array:
        """A smooth Gaussian field [s, h, w], or [fields, s, h, w], of about unit variance."""
        shape = tuple(map(len, self.nodes))
        shape = shape if fields is None else (fields, *shape)
        coefficients = rng.standard_normal(shape, dtype=np.float32)
        return self.evaluate(coefficients * np.float32(_UNIT_VARIANCE**3))

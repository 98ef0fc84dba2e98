"""Smooth random fields: cubic B-splines on a coarse grid, evaluated as three matrix products."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Float32s

Axis = npt.NDArray[np.float64]

# A cubic B-spline in one dimension with independent unit normal coefficients has variance 0.479.
_UNIT_VARIANCE = 0.479**-0.5


def _basis(positions: Axis, nodes: Axis) -> Float32s:
    """Return the cubic B-spline weights of evenly spaced nodes, [position, node]."""
    distance = np.abs(positions[:, None] - nodes) / (nodes[1] - nodes[0])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    basis: Float32s = np.where(distance < 1, near, far).astype(np.float32)
    return basis


class SplineField:
    """Cubic B-spline on nodes `step` mm apart, evaluated at the positions `axes`.

    `extent` is (low, high) of each axis in mm. The nodes depend on `extent` and `step` alone, so a
    field drawn with one seed is the same field on every image grid.
    """

    def __init__(
        self, axes: Sequence[Axis], extent: Sequence[tuple[float, float]], step: float
    ) -> None:
        self.nodes: list[Axis] = []
        for low, high in extent:
            # A cubic spline has a support of four nodes, so nodes must lie outside the extent too.
            count = int(np.ceil((high - low) / step)) + 3
            middle, half = (low + high) / 2, (count - 1) * step / 2
            self.nodes.append(np.linspace(middle - half, middle + half, count))
        self._bases = [_basis(*pair) for pair in zip(axes, self.nodes, strict=True)]

    def evaluate(self, coefficients: Float32s) -> Float32s:
        """Return the field [..., s, h, w] with spline coefficients [..., ns, nh, nw]."""
        s, h, w = self._bases
        rows = np.matmul(h, np.matmul(coefficients, w.T))  # [..., ns, h, w]
        flat = rows.reshape(*rows.shape[:-2], -1)  # [..., ns, h * w]
        field: Float32s = np.matmul(s, flat).reshape(*rows.shape[:-3], len(s), *rows.shape[-2:])
        return field

    def sample(self, rng: np.random.Generator, fields: int | None = None) -> Float32s:
        """Draw a smooth Gaussian field [s, h, w] of about unit variance, or [fields, s, h, w]."""
        shape = tuple(map(len, self.nodes))
        shape = shape if fields is None else (fields, *shape)
        coefficients = rng.standard_normal(shape, dtype=np.float32)
        return self.evaluate(coefficients * np.float32(_UNIT_VARIANCE**3))

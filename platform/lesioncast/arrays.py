"""Array types under short names for the signatures of numerical functions, and rows of arrays.

Shapes stand in the docstrings. The axes of a volume are (s, h, w): slices, rows, columns.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

Spacing = tuple[float, float, float]
"""Size of a voxel (s, h, w) in mm."""
Mask = npt.NDArray[np.bool_]
"""A binary volume [s, h, w]."""
LabelMap = npt.NDArray[np.int16]
"""FreeSurfer ids [s, h, w]; 0 is outside the brain."""

Item = TypeVar("Item")


def evenly_spaced(items: Sequence[Item], number: int) -> list[Item]:
    """Return `number` of the items, evenly over their order; all where there are fewer."""
    number = min(number, len(items))
    return [items[position * len(items) // number] for position in range(number)]

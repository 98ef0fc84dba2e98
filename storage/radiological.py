"""The convention of every picture of an axial slice: radiological, with a letter on each side.

The reader looks from the patient's feet, so the patient's right is on the left of the picture.
Arrays of this project have RAS+ axes (s, h, w): h runs to anterior and w to the patient's right.
"""

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

CONVENTION = "Radiological convention: the patient's right is on the left."

Scalar = TypeVar("Scalar", bound=np.generic)


class EdgeLetters(NamedTuple):
    """Letter of the side of the patient that lies at each edge of a picture."""

    left: str
    right: str
    top: str
    bottom: str


AXIAL = EdgeLetters(left="R", right="L", top="A", bottom="P")


def to_radiological(slices: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """Return axial slices [..., h, w] as rows from anterior down, columns from the right."""
    return slices[..., ::-1, ::-1]

"""Count detected and missed lesions by the rule of the MSSEG-2 challenge.

Commowick et al. 2018 (Scientific Reports 8:13650) define the rule. The tool animaSegPerfAnalyzer
scored MSSEG-2 (2021) with it, at the thresholds below. A lesion is detected if

1. more than ALPHA of its volume is covered by lesions of the other mask, and
2. of the lesions that cover it, taken from the largest overlap until they make up GAMMA of the
   covered volume, none has more than BETA of its own volume outside all lesions of this mask.

Read with the masks exchanged, the same rule says which predicted lesions are correct. Lesions of
at most MIN_LESION_MM3 are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Ints, Mask
from lesioncast.imaging.lesions import components

ALPHA = 0.10
BETA = 0.70
GAMMA = 0.65
MIN_LESION_MM3 = 3.0


@dataclass(frozen=True)
class Detection:
    """Lesion counts of one predicted mask against the observed mask."""

    #: Number of observed lesions.
    observed: int
    #: Number of observed lesions that the prediction detects.
    detected: int
    #: Number of predicted lesions.
    predicted: int
    #: Number of predicted lesions that match an observed one.
    correct: int
    #: Volume of the predicted lesions. MSSEG-2 reports it, with `predicted`, for cases without an
    #: observed lesion.
    predicted_mm3: float

    @property
    def f1(self) -> float | None:
        """Harmonic mean 2 P S / (P + S) of precision P and sensitivity S over lesions.

        0 if lesions were observed and none is correct. None if no lesion was observed; the
        challenge uses other figures for these cases.
        """
        if not self.observed:
            return None
        if not self.detected or not self.correct:
            return 0.0
        sensitivity, precision = self.detected / self.observed, self.correct / self.predicted
        return 2 * precision * sensitivity / (precision + sensitivity)


def match_lesions(predicted: Mask, observed: Mask, spacing: Sequence[float]) -> Detection:
    """Match the lesions of a `predicted` mask [s, h, w] with those of the `observed` mask.

    `spacing` (s, h, w) is in mm.
    """
    overlap = label_overlaps(
        _label_large_lesions(observed, spacing), _label_large_lesions(predicted, spacing)
    )
    voxel_mm3 = float(np.prod(spacing))
    return Detection(
        observed=overlap.shape[0] - 1,
        detected=count_detected(overlap),
        predicted=overlap.shape[1] - 1,
        correct=count_detected(overlap.T),
        predicted_mm3=float(overlap[:, 1:].sum()) * voxel_mm3,
    )


def _label_large_lesions(mask: Mask, spacing: Sequence[float]) -> npt.NDArray[np.int32]:
    """Label the lesions above MIN_LESION_MM3, from 1 to n without gaps."""
    labels, number = components(mask)
    voxels = np.bincount(labels.ravel(), minlength=number + 1)
    is_large = voxels * np.prod(spacing) > MIN_LESION_MM3
    is_large[0] = False  # the background
    new_label = np.where(is_large, np.cumsum(is_large), 0).astype(np.int32)
    return new_label[labels]


def label_overlaps(rows: npt.NDArray[np.int32], columns: npt.NDArray[np.int32]) -> Ints:
    """Count the voxels shared by each pair of labels, [row label, column label].

    Label 0 is the background.
    """
    width = int(columns.max()) + 1
    height = int(rows.max()) + 1
    # Numbering the pairs lets one bincount make the whole table.
    pairs = rows.ravel().astype(np.int64) * width + columns.ravel()
    return np.bincount(pairs, minlength=height * width).reshape(height, width).astype(np.int64)


def count_detected(overlap: Ints) -> int:
    """Count the lesions in the rows of `overlap` that the lesions in its columns detect."""
    return sum(_is_detected(overlap, row) for row in range(1, overlap.shape[0]))


def _is_detected(overlap: Ints, row: int) -> bool:
    """Apply the rule of this module to the lesion in one row of `overlap`."""
    covering = overlap[row, 1:]
    covered = int(covering.sum())
    if covered <= ALPHA * overlap[row].sum():
        return False
    outside_share = overlap[0, 1:] / overlap[:, 1:].sum(axis=0)
    covered_share = 0.0
    for column in np.argsort(-covering, kind="stable"):
        if outside_share[column] > BETA:
            return False
        covered_share += covering[column] / covered
        if covered_share >= GAMMA:
            break
    return True
